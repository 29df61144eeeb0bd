"""The host's bookkeeping of a run: which prompt is prefilled next, and which completions wait.

A completion goes through three stages. It is pending until its prompt gets a prefix cache entry;
then it is queued until a row takes it, which happens on the device; then it decodes until it ends.
When all completions of an entry have ended, the entry is free for the next prompt.

Pending prompts are admitted in the order of their tokens, so that prompts with a common prefix
follow one another and share it in the prefix cache.

On a mesh each shard has a range of the prompts and works on its own entries and rows, so that
shards need not communicate. A shard whose rows would be idle takes pending prompts of the others.

Requests may be added while the run goes on, and may belong to several policies: each has its own
sampling parameters, and its own adapter where the device has their adapters side by side.
"""

from __future__ import annotations

import bisect
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Int

from malt_jax.sampling.decode import IDLE, ChunkOutput, ParamArrays, Rows
from malt_jax.sampling.filters import Filters
from malt_jax.sampling.memory import CacheShape, siblings_per_entry
from malt_jax.sampling.prefix_cache import Prefill, PrefixCache
from malt_jax.sampling.request import MAX_END_IDS, Completion, Request, SamplingParams
from malt_jax.sampling.thoughts import budget_arrays, first_thoughts


@dataclass
class PartialCompletion:
    """A completion as far as it has been drawn."""

    request: int
    sibling: int  # which of the request's completions it is
    entry: int = -1  # the prefix cache entry of its prompt, once it has one
    shard: int = 0  # the part of the mesh that holds this entry
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish: str | None = None

    def done(self) -> Completion:
        assert self.finish is not None
        return Completion(tuple(self.tokens), tuple(self.logprobs), self.finish)


class _Group(NamedTuple):
    """Completions that share an entry; they sort in the order of admission."""

    order: tuple[int, ...]
    prompt: tuple[int, ...]
    first: int
    end: int

    @property
    def numbers(self) -> range:
        return range(self.first, self.end)


class Growth(NamedTuple):
    """A completion to which a chunk added tokens, and its length before."""

    completion: PartialCompletion
    before: int


class Scheduler:
    """All requests of one run, over a fixed number of prefix cache entries and rows."""

    def __init__(
        self,
        requests: Sequence[Request],
        params: SamplingParams | Sequence[SamplingParams],
        shape: CacheShape,
        shards: int = 1,
        apart: bool = False,
    ):
        """`params`: those of each policy, or of the only one.

        `apart`: each policy has an adapter of its own, so that they share no keys and values.
        """
        self.params = [params] if isinstance(params, SamplingParams) else list(params)
        self.shape, self.shards, self._apart = shape, shards, apart
        self.requests: dict[int, Request] = {}
        """By number, until all of their completions were taken."""
        self._request_count = 0
        self.completions: list[PartialCompletion] = []
        """All completions; rows and queues refer to them by index."""
        self._pending: list[list[_Group]] = [[] for _ in range(shards)]
        """Per shard: completions whose prompt has no entry yet, those of one entry together."""
        self._queues: list[deque[int]] = [deque() for _ in range(shards)]
        """Per shard: completions whose prompt has an entry, and that no row has taken yet."""
        self._thinks = any(params.thought is not None for params in self.params)
        self.rows = self._idle_rows(shape.rows)
        self.prefix_cache = PrefixCache(shape, shards)
        self.param_arrays = _param_arrays(self.params)
        groups = self._new_groups(requests)
        for shard in range(shards):
            first, end = (round(i * len(groups) / shards) for i in (shard, shard + 1))
            self._pending[shard] = groups[first:end]
        self.useful_steps = 0
        """Row-steps so far that made a token of a completion."""
        self._unrecorded: tuple[Int[np.ndarray, "R steps+1"], ChunkOutput] | None = None
        """The last chunk, and what each row held at each of its steps and after them."""

    @property
    def finished(self) -> bool:
        return not self.pending and not np.any(self.prefix_cache.readers)

    @property
    def pending(self) -> bool:
        """Whether prompts wait for an entry."""
        return any(self._pending)

    @property
    def demand(self) -> int:
        """Completions that have not ended."""
        pending = sum(len(group.numbers) for groups in self._pending for group in groups)
        return pending + sum(self._load(shard) for shard in range(self.shards))

    def add(self, request: Request, shard: int | None = None) -> None:
        """Adds a request to those pending, by default on the shard where fewest are."""
        for group in self._new_groups([request]):
            at = min(self._pending, key=len) if shard is None else self._pending[shard]
            bisect.insort(at, group)

    def _new_groups(self, requests: Sequence[Request]) -> list[_Group]:
        """Registers requests; the completions that share an entry, in the order of admission."""
        groups = []
        for request in requests:
            number, count = len(self.completions), len(request.keys)
            members = (PartialCompletion(self._request_count, i) for i in range(count))
            self.completions += members
            self.requests[self._request_count] = request
            self._request_count += 1
            size = siblings_per_entry(count, self.shape.siblings) if count else 1
            groups += [
                _Group(request.order, request.prompt, first, min(first + size, number + count))
                for first in range(number, number + count, size)
            ]
        return sorted(groups)

    def results(self) -> list[list[Completion]]:
        """The completions of every request."""
        self.record()
        done: list[list[Completion]] = [[] for _ in range(self._request_count)]
        for completion in self.completions:
            done[completion.request].append(completion.done())
        return done

    def admit(self) -> list[Prefill]:
        """Assigns pending prompts to free entries and queues their completions.

        Returns the prefills to run.
        """
        prefills: list[Prefill] = []
        batches: dict[int, int] = {}

        def begin(shard: int, group: _Group) -> None:
            request = self.requests[self.completions[group.numbers[0]].request]
            entry, prefill = self.prefix_cache.admit(
                request.prompt[:-1],
                len(group.numbers),
                shard,
                batches,
                request.policy if self._apart else 0,
            )
            for number in group.numbers:
                self.completions[number].entry = entry
                self.completions[number].shard = shard
            self._queues[shard] += group.numbers
            prefills.extend([prefill] if prefill else [])

        for shard, pending in enumerate(self._pending):
            while pending and self.prefix_cache.has_free(shard):
                begin(shard, pending.pop(0))
        # A shard takes over only as many prompts as it has idle rows. More would wait in its queue
        # while other shards have rows that are idle.
        own = self.shape.rows // self.shards
        loads = {s: self._load(s) for s in range(self.shards) if self.pending}
        while self.pending:
            able = [s for s in loads if loads[s] < own and self.prefix_cache.has_free(s)]
            if not able:
                break
            shard = min(able, key=loads.__getitem__)
            # From the end: the prompts there are the furthest from what their own shard works on.
            group = max(self._pending, key=len).pop()
            loads[shard] += len(group.numbers)
            begin(shard, group)
        return prefills

    def queue(self) -> Rows:
        """The queued completions `[shards, W]`, with the values of a row that takes them."""
        depth = self.shape.entries // self.shards * self.shape.siblings
        queue = self._idle_rows(self.shards, depth)
        for shard, numbers in enumerate(self._queues):
            for place, number in enumerate(numbers):
                completion = self.completions[number]
                request = self.requests[completion.request]
                queue.completion[shard, place] = number
                queue.entry[shard, place] = completion.entry
                queue.prefix[shard, place] = len(request.prompt) - 1
                queue.token[shard, place] = request.prompt[-1]
                queue.key[shard, place] = request.keys[completion.sibling]
                if queue.policy is not None:
                    queue.policy[shard, place] = request.policy
                    thought = self.params[request.policy].thought
                    if queue.thoughts is not None:
                        queue.thoughts.matched[shard, place] = first_thoughts(thought).matched
        return queue

    def _idle_rows(self, *shape: int) -> Rows:
        entry, prefix, token, length = np.zeros((4, *shape), np.int32)
        return Rows(
            np.full(shape, IDLE, np.int32),
            entry,
            prefix,
            token,
            length,
            np.zeros((*shape, 2), np.uint32),
            first_thoughts(self.params[0].thought, *shape) if self._thinks else None,
            np.zeros(shape, np.int32) if len(self.params) > 1 else None,
        )

    def idle_limit(self, fewer_rows: int) -> int:
        """Number of idle rows at which a chunk should end early.

        While prompts are pending, the host can prefill some for the idle rows. Afterwards it can
        only shrink the batch, so the chunk continues until `fewer_rows` are enough.
        """
        rows = self.shape.rows
        idle = sum(max(0, rows // self.shards - self._load(s)) for s in range(self.shards))
        some = min(rows, idle + max(1, rows // 16))
        return some if self.pending else max(some, rows - fewer_rows)

    def fits(self, rows: int) -> bool:
        """Whether all completions that are left fit into `rows` rows at once."""
        most = rows // self.shards
        return not self.pending and all(self._load(s) <= most for s in range(self.shards))

    def _load(self, shard: int) -> int:
        """Active plus queued rows of this shard."""
        active = self.rows.completion.reshape(self.shards, -1)[shard] != IDLE
        return int(np.sum(active)) + len(self._queues[shard])

    def resize(self, shape: CacheShape) -> tuple[Int[np.ndarray, "P"], Int[np.ndarray, "R"]]:
        """Continues in a smaller or larger shape.

        Returns the entries and rows to continue with, including all busy ones. In a larger shape
        the new ones repeat old ones and hold nothing.
        """
        entries, new = _placed(self.prefix_cache.readers == 0, shape.entries, self.shards)
        rows, idle = _placed(self.rows.completion == IDLE, shape.rows, self.shards)
        renumbered = np.zeros(self.shape.entries, np.int32)
        renumbered[entries[~new]] = np.flatnonzero(~new)
        for completion in self.completions:
            completion.entry = int(renumbered[completion.entry])
        kept = jax.tree.map(lambda x: x[rows], self.rows)
        kept.completion[idle], kept.length[idle] = IDLE, 0
        self.rows = kept._replace(entry=renumbered[kept.entry])
        self.prefix_cache.keep(entries, new)
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
        stops = any(params.stop for params in self.params)
        for row, now in enumerate(self.rows.completion.tolist() if stops else ()):
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
                        ends = self._params_of(completion).end_ids
                        at_end = completion.tokens[-1] in ends
                        completion.finish = "eos" if at_end else "length"
        return grown

    def end_at_stop_text(self, growth: Growth, tokenizer: Any) -> None:
        """Cuts a completion that grew after the token that completes a stop text, if one does.

        A thought may hold these texts: only the answer after it is searched.
        """
        completion, before = growth
        params = self._params_of(completion)
        tokens, form = completion.tokens, params.thoughts
        count = len(tokens) - (tokens[-1] in params.end_ids)

        def has_stop(length: int) -> bool:
            start = form.answer_start(tokens[:length]) if form else 0
            if start is None:
                return False
            text = tokenizer.decode(tokens[start:length])
            return any(stop in text for stop in params.stop)

        if params.stop and has_stop(count):
            length = next((n for n in range(before + 1, count) if has_stop(n)), count)
            self.useful_steps -= len(tokens) - length
            del tokens[length:], completion.logprobs[length:]
            completion.finish = "stop"

    def _params_of(self, completion: PartialCompletion) -> SamplingParams:
        if len(self.params) == 1:
            return self.params[0]
        return self.params[self.requests[completion.request].policy]


def _param_arrays(policies: Sequence[SamplingParams]) -> ParamArrays:
    """Scalars for one policy, which all rows share, else arrays over the policies."""
    thinks = any(params.thought is not None for params in policies)

    def arrays(params: SamplingParams) -> ParamArrays:
        ends = (*params.end_ids, *[-1] * (MAX_END_IDS - len(params.end_ids)))
        top_k = np.int32(min(params.top_k, 2**31 - 1))
        return ParamArrays(
            Filters(np.float32(params.temperature), top_k, np.float32(params.top_p)),
            max_new_tokens=np.int32(params.max_new_tokens),
            end_ids=np.array(ends, np.int32),
            thought=budget_arrays(params.thought) if thinks else None,
        )

    each = [arrays(params) for params in policies]
    return each[0] if len(each) == 1 else jax.tree.map(lambda *xs: np.stack(xs), *each)


def _placed(
    idle: Bool[np.ndarray, "n"], count: int, shards: int
) -> tuple[Int[np.ndarray, "m"], Bool[np.ndarray, "m"]]:
    """`count` places, equally many per shard, those in use first; and which of them are new."""
    own, wanted = len(idle) // shards, count // shards
    order = np.argsort(idle.reshape(shards, own), axis=1, kind="stable")[:, :wanted]
    order = np.sort(order, axis=1)
    added = max(0, wanted - own)
    order = np.pad(order, ((0, 0), (0, added)), mode="edge")
    new = np.zeros((shards, wanted), bool)
    new[:, wanted - added :] = True
    return (order + own * np.arange(shards)[:, None]).reshape(-1), new.reshape(-1)
