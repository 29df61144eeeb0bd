"""The host's bookkeeping of a run: which prompt is prefilled next, and which completions wait.

A completion goes through three stages. It is pending until its prompt gets a prefix cache entry;
then it is queued until a row takes it, which happens on the device; then it decodes until it ends.
When all completions of an entry have ended, the entry is free for the next prompt.

Pending prompts are admitted in the order of their tokens, so that prompts with a common prefix
follow one another and share it in the prefix cache.

On a mesh each shard has a range of the prompts and works on its own entries and rows, so that
shards need not communicate. A shard that has no prompts left takes pending ones of the others.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Int

from malt_jax.sampling.decode import IDLE, ChunkOutput, ParamArrays, Rows
from malt_jax.sampling.filters import Filters
from malt_jax.sampling.memory import CacheShape, siblings_per_entry
from malt_jax.sampling.prefix_cache import Prefill, PrefixCache
from malt_jax.sampling.request import (
    MAX_END_IDS,
    Completion,
    Request,
    SamplingParams,
    ThoughtBudget,
)
from malt_jax.sampling.thoughts import budget_arrays, first_thoughts


@dataclass
class PartialCompletion:
    """A completion as far as it has been drawn."""

    request: int
    sibling: int  # which of the request's completions it is
    entry: int = -1  # the prefix cache entry of its prompt, once it has one
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish: str | None = None

    def done(self) -> Completion:
        assert self.finish is not None
        return Completion(tuple(self.tokens), tuple(self.logprobs), self.finish)


class Growth(NamedTuple):
    """A completion to which a chunk added tokens, and its length before."""

    completion: PartialCompletion
    before: int


class Scheduler:
    """All requests of one run, over a fixed number of prefix cache entries and rows."""

    def __init__(
        self,
        requests: Sequence[Request],
        params: SamplingParams,
        shape: CacheShape,
        shards: int = 1,
    ):
        self.requests, self.params, self.shape, self.shards = requests, params, shape, shards
        self.completions = [
            PartialCompletion(i, j) for i, r in enumerate(requests) for j in range(len(r.keys))
        ]
        """All completions; rows and queues refer to them by index."""
        groups = list(_sibling_groups(requests, shape.siblings))
        cuts = [round(shard * len(groups) / shards) for shard in range(shards + 1)]
        self._pending = [deque(groups[first:end]) for first, end in pairwise(cuts)]
        """Per shard: completions whose prompt has no entry yet, those of one entry together."""
        self._queues: list[deque[int]] = [deque() for _ in range(shards)]
        """Per shard: completions whose prompt has an entry, and that no row has taken yet."""
        self.rows = _idle_rows(params.thought, shape.rows)
        self.prefix_cache = PrefixCache(shape, shards)
        ends = (*params.end_ids, *[-1] * (MAX_END_IDS - len(params.end_ids)))
        top_k = np.int32(min(params.top_k, 2**31 - 1))
        self.param_arrays = ParamArrays(
            Filters(np.float32(params.temperature), top_k, np.float32(params.top_p)),
            max_new_tokens=np.int32(params.max_new_tokens),
            end_ids=np.array(ends, np.int32),
            thought=None if params.thought is None else budget_arrays(params.thought),
        )
        self.useful_steps = 0
        """Row-steps so far that made a token of a completion."""
        self._unrecorded: tuple[Int[np.ndarray, "R steps+1"], ChunkOutput] | None = None
        """The last chunk, and what each row held at each of its steps and after them."""

    @property
    def finished(self) -> bool:
        return not any(self._pending) and not np.any(self.prefix_cache.readers)

    def results(self) -> list[list[Completion]]:
        """The completions of every request."""
        self.record()
        done: list[list[Completion]] = [[] for _ in self.requests]
        for completion in self.completions:
            done[completion.request].append(completion.done())
        return done

    def admit(self) -> list[Prefill]:
        """Assigns pending prompts to free entries and queues their completions.

        Returns the prefills to run.
        """
        prefills: list[Prefill] = []
        batches: dict[int, int] = {}
        for shard in range(self.shards):
            while self.prefix_cache.has_free(shard) and (group := self._next_group(shard)):
                request = self.requests[self.completions[group[0]].request]
                entry, prefill = self.prefix_cache.admit(
                    request.prompt[:-1], len(group), shard, batches
                )
                for number in group:
                    self.completions[number].entry = entry
                self._queues[shard] += group
                prefills += [prefill] if prefill else []
        return prefills

    def _next_group(self, shard: int) -> range | None:
        if self._pending[shard]:
            return self._pending[shard].popleft()
        fullest = max(self._pending, key=len)
        # From its end: the prompts there are the furthest from what its own shard works on.
        return fullest.pop() if fullest else None

    def queue(self) -> Rows:
        """The queued completions `[shards, W]`, with the values of a row that takes them."""
        depth = self.shape.entries // self.shards * self.shape.siblings
        queue = _idle_rows(self.params.thought, self.shards, depth)
        for shard, numbers in enumerate(self._queues):
            for place, number in enumerate(numbers):
                completion = self.completions[number]
                request = self.requests[completion.request]
                queue.completion[shard, place] = number
                queue.entry[shard, place] = completion.entry
                queue.prefix[shard, place] = len(request.prompt) - 1
                queue.token[shard, place] = request.prompt[-1]
                queue.key[shard, place] = request.keys[completion.sibling]
        return queue

    def idle_limit(self, fewer_rows: int) -> int:
        """Number of idle rows at which a chunk should end early.

        While prompts are pending, the host can prefill some for the idle rows. Afterwards it can
        only shrink the batch, so the chunk continues until `fewer_rows` are enough.
        """
        rows = self.shape.rows
        idle = sum(max(0, rows // self.shards - self._load(s)) for s in range(self.shards))
        some = min(rows, idle + max(1, rows // 16))
        return some if any(self._pending) else max(some, rows - fewer_rows)

    def fits(self, rows: int) -> bool:
        """Whether all completions that are left fit into `rows` rows at once."""
        most = rows // self.shards
        return not any(self._pending) and all(self._load(s) <= most for s in range(self.shards))

    def _load(self, shard: int) -> int:
        """Active plus queued rows of this shard."""
        active = self.rows.completion.reshape(self.shards, -1)[shard] != IDLE
        return int(np.sum(active)) + len(self._queues[shard])

    def shrink(self, shape: CacheShape) -> tuple[Int[np.ndarray, "P"], Int[np.ndarray, "R"]]:
        """Continues in a smaller shape.

        Returns the entries and rows to keep, including all busy ones.
        """
        entries = _kept(self.prefix_cache.readers == 0, shape.entries, self.shards)
        rows = _kept(self.rows.completion == IDLE, shape.rows, self.shards)
        renumbered = np.zeros(self.shape.entries, np.int32)
        renumbered[entries] = np.arange(len(entries))
        for completion in self.completions:
            completion.entry = int(renumbered[completion.entry])
        kept = jax.tree.map(lambda x: x[rows], self.rows)
        self.rows = kept._replace(entry=renumbered[kept.entry])
        self.prefix_cache.keep(entries)
        self.shape = shape
        return entries, rows

    def process_output(self, rows: Rows, output: ChunkOutput) -> None:
        """Takes over what the next chunk depends on: rows, queues, and entries that became free.

        The device waits for this. `record` does the rest, while the device works again.
        """
        self.record()
        self.rows = jax.tree.map(np.array, rows)
        for queue, count in zip(self._queues, output.dequeued.tolist(), strict=True):
            for _ in range(count):
                queue.popleft()
        drawn = output.completion[: int(output.steps)].T
        held = np.concatenate([drawn, self.rows.completion[:, None]], axis=1)
        self._unrecorded = held, output
        ended = held[:, :-1][held[:, :-1] != held[:, 1:]]
        for number in ended[ended != IDLE].tolist():
            self.prefix_cache.readers[self.completions[number].entry] -= 1
        for row, now in enumerate(self.rows.completion.tolist() if self.params.stop else ()):
            if now != IDLE and self.completions[now].finish is not None:
                # A stop text was found while the device continued with it: the row is free.
                self.rows.completion[row] = IDLE
                self.prefix_cache.readers[self.completions[now].entry] -= 1

    def record(self) -> list[Growth]:
        """Adds the tokens of the last chunk to their completions; returns those that grew."""
        if self._unrecorded is None:
            return []
        (held, output), self._unrecorded = self._unrecorded, None
        tokens, logprobs = output.token.T.tolist(), output.logprob.T.tolist()
        cuts: dict[int, list[int]] = defaultdict(list)
        for row, step in np.argwhere(np.diff(held[:, :-1], axis=1)).tolist():
            cuts[row].append(step + 1)
        grown: list[Growth] = []
        for row, (*numbers, now) in enumerate(held.tolist()):
            # A row's steps fall into spans, one for each completion that it had in the chunk.
            for first, end in pairwise((0, *cuts.get(row, ()), len(numbers))):
                if first == end or numbers[first] == IDLE:
                    continue
                completion, ended = self.completions[numbers[first]], numbers[first] != now
                if completion.finish is None:  # else it had a stop text: what follows is dropped
                    grown.append(Growth(completion, len(completion.tokens)))
                    completion.tokens += tokens[row][first:end]
                    completion.logprobs += logprobs[row][first:end]
                    self.useful_steps += end - first
                    if ended:
                        at_end = completion.tokens[-1] in self.params.end_ids
                        completion.finish = "eos" if at_end else "length"
        return grown

    def end_at_stop_text(self, growth: Growth, tokenizer: Any) -> None:
        """Cuts a completion that grew after the token that completes a stop text, if one does.

        A thought may hold these texts: only the answer after it is searched.
        """
        completion, before = growth
        tokens, form = completion.tokens, self.params.thoughts
        count = len(tokens) - (tokens[-1] in self.params.end_ids)

        def has_stop(length: int) -> bool:
            start = form.answer_start(tokens[:length]) if form else 0
            if start is None:
                return False
            text = tokenizer.decode(tokens[start:length])
            return any(stop in text for stop in self.params.stop)

        if self.params.stop and has_stop(count):
            length = next((n for n in range(before + 1, count) if has_stop(n)), count)
            self.useful_steps -= len(tokens) - length
            del tokens[length:], completion.logprobs[length:]
            completion.finish = "stop"


def _sibling_groups(requests: Sequence[Request], limit: int) -> Iterator[range]:
    """The numbers of completions that share an entry, in the order of their prompts' tokens."""
    first_numbers = np.cumsum([0, *(len(request.keys) for request in requests)]).tolist()
    for i in sorted(range(len(requests)), key=lambda i: requests[i].prompt):
        count = len(requests[i].keys)
        size = siblings_per_entry(count, limit) if count else 1
        for first in range(0, count, size):
            number = first_numbers[i]
            yield range(number + first, number + min(first + size, count))


def _idle_rows(thought: ThoughtBudget | None, *shape: int) -> Rows:
    entry, prefix, token, length = np.zeros((4, *shape), np.int32)
    key = np.zeros((*shape, 2), np.uint32)
    thoughts = None if thought is None else first_thoughts(thought, *shape)
    return Rows(np.full(shape, IDLE, np.int32), entry, prefix, token, length, key, thoughts)


def _kept(idle: np.ndarray, count: int, shards: int) -> Int[np.ndarray, "kept"]:
    """`count` places, equally many per shard, those in use first."""
    own = len(idle) // shards
    order = np.argsort(idle.reshape(shards, own), axis=1, kind="stable")[:, : count // shards]
    return np.sort(order + own * np.arange(shards)[:, None], axis=1).reshape(-1)
