"""The host's side of a run: which prompt is in which slot, what a slot goes on to, who shares what.

Pending prompts are admitted in the order of their tokens, so prompts with a common head follow one
another, and a prompt is grown from the slot that holds the longest head of it.

On a mesh slots are split into parts. Each part has a range of the prompts, takes from the others'
when it has none left, and shares heads only among its own slots, so none of it needs a word from
another part, and the host's work for a prompt does not grow with the mesh.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from malt_jax.sampling.programs import IDLE, Log, Rows, Slots
from malt_jax.sampling.request import Completion, Request, Settings

EMPTY = -1


@dataclass(frozen=True)
class Admission:
    """Slot `target` takes a prefix: its first `start` tokens from `source`, the others computed."""

    source: int
    target: int
    start: int
    tokens: tuple[int, ...]
    wave: int
    """Admissions of a wave read what earlier waves wrote."""


@dataclass
class Draft:
    """A completion as far as it has come."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish: str | None = None

    def done(self) -> Completion:
        assert self.finish is not None
        return Completion(tuple(self.tokens), tuple(self.logprobs), self.finish)


class Pool:
    """All requests of one run over a fixed number of slots and rows."""

    def __init__(
        self,
        requests: Sequence[Request],
        settings: Settings,
        slots: int,
        width: int,
        places: int,
        parts: int = 1,
    ):
        self.requests, self.settings, self.parts = requests, settings, parts
        order = sorted(range(len(requests)), key=lambda i: requests[i].prompt)
        order = [i for i in order if len(requests[i].keys)]
        cuts = [round(part * len(order) / parts) for part in range(parts + 1)]
        self.pending = [deque(order[a:b]) for a, b in pairwise(cuts)]
        """Prompts of each part of the mesh that have no slot yet."""
        self.drafts = [[Draft() for _ in request.keys] for request in requests]
        self.rows = Rows(
            sibling=np.full((slots, width), IDLE, np.int32),
            token=np.zeros((slots, width), np.int32),
            length=np.zeros((slots, width), np.int32),
            key=np.zeros((slots, width, 2), np.uint32),
        )
        self.queue_depth = 4 * width
        self.request = np.full(slots, EMPTY)
        """The request in each slot, or EMPTY."""
        self.next = np.zeros(slots, np.int32)
        """The slot's next completion to begin ..."""
        self.end = np.zeros(slots, np.int32)
        """... and the one before which it stops."""
        self.resident = np.full((slots, places), EMPTY, np.int64)
        """The prefix tokens whose keys and values each slot holds, also after it is done."""
        self.useful_steps = 0

    @property
    def finished(self) -> bool:
        return not any(self.pending) and bool(np.all(self.request == EMPTY))

    @property
    def can_fill(self) -> bool:
        """Whether a slot that becomes free would find work."""
        return any(self.pending) or bool(np.any(self.next < self.end))

    @property
    def busy(self) -> int:
        """Slots at work."""
        return int(np.sum(self.request != EMPTY))

    def shrink(self, slots: int) -> np.ndarray:
        """Keep this many slots, those at work among them; returns which."""
        kept = np.argsort(self.request == EMPTY, kind="stable")[:slots]
        self.rows = Rows(*(x[kept] for x in self.rows))
        self.request, self.next, self.end = self.request[kept], self.next[kept], self.end[kept]
        self.resident = self.resident[kept]
        return kept

    def admit(self) -> list[Admission]:
        """Give every free slot work, as long as there is any, and start it in its rows."""
        admissions: list[Admission] = []
        waves: dict[int, int] = {}
        for part in range(self.parts):
            own = self._slots(part)
            free = [slot for slot in own if self.request[slot] == EMPTY]
            while free and (work := self._take(part)):
                index, first, end = work
                prefix = self.requests[index].prompt[:-1]
                target, admission = self._place(prefix, own, free, waves)
                self._occupy(target, index, first, end)
                admissions += admission
                free.remove(target)
        return admissions

    def _slots(self, part: int) -> range:
        """The slots that a part of the mesh holds."""
        own = len(self.request) // self.parts
        return range(part * own, (part + 1) * own)

    def _take(self, part: int) -> tuple[int, int, int] | None:
        """What a part's free slot decodes: a request, its first completion and the last's end."""
        if pending := self.pending[part]:
            index = pending.popleft()
            return index, 0, len(self.requests[index].keys)
        if pending := max(self.pending, key=len):
            index = pending.pop()  # the furthest from what its own part works on
            return index, 0, len(self.requests[index].keys)
        # No prompt is left, but completions are: a free slot takes half of the longest queue.
        victim = int(np.argmax(self.end - self.next))
        if self.next[victim] >= self.end[victim]:
            return None
        end = int(self.end[victim])
        middle = int(end - (end - self.next[victim] + 1) // 2)
        self.end[victim] = middle
        return int(self.request[victim]), middle, end

    def _place(
        self, prefix: tuple[int, ...], own: range, free: list[int], waves: dict[int, int]
    ) -> tuple[int, list[Admission]]:
        """Choose the slot a prefix goes to and the one it grows from, both among `own`.

        If a free slot holds the longest head, it is grown in place: what a free slot held is
        never read by another, so the order of admissions in a wave does not matter.
        """
        wanted = np.asarray(prefix, np.int64)
        same = self.resident[own.start : own.stop, : len(prefix)] == wanted[None]
        shared = np.logical_and.accumulate(same, axis=1).sum(axis=1)
        fresh = np.array([waves.get(slot, 0) for slot in own])
        source = own[int(np.lexsort((fresh, -shared))[0])]
        heads = dict(zip(own, shared.tolist(), strict=True))
        in_place = [slot for slot in free if heads[slot] == heads[source]]
        if in_place:
            source = target = in_place[0]
        else:
            # The least related: what is left of the pool is closer to this prompt than to it.
            target = min(free, key=lambda slot: heads[slot])
        start = heads[source]
        self.resident[target] = EMPTY
        self.resident[target, : len(prefix)] = wanted
        if source == target and start == len(prefix):
            return target, []
        wave = 0 if source == target else waves.get(source, -1) + 1
        waves[target] = wave
        return target, [Admission(source, target, start, prefix[start:], wave)]

    def _occupy(self, slot: int, index: int, first: int, end: int) -> None:
        self.request[slot], self.next[slot], self.end[slot] = index, first, end
        self._start_idle_rows(slot)

    def _start_idle_rows(self, slot: int) -> None:
        request = self.requests[self.request[slot]]
        for row in np.flatnonzero(self.rows.sibling[slot] == IDLE):
            if self.next[slot] >= self.end[slot]:
                return
            sibling = self.next[slot]
            self.rows.sibling[slot, row] = sibling
            self.rows.token[slot, row] = request.prompt[-1]
            self.rows.length[slot, row] = 0
            self.rows.key[slot, row] = request.keys[sibling]
            self.next[slot] += 1

    def plan(self) -> Slots:
        """The slots' arrays for the next chunk."""
        count, depth = len(self.request), self.queue_depth
        prefix, token = np.zeros(count, np.int32), np.zeros(count, np.int32)
        keys = np.zeros((count, depth, 2), np.uint32)
        queued = np.minimum(self.end - self.next, depth).astype(np.int32)
        for slot in np.flatnonzero(self.request != EMPTY).tolist():
            request = self.requests[self.request[slot]]
            prefix[slot], token[slot] = len(request.prompt) - 1, request.prompt[-1]
            first = self.next[slot]
            keys[slot, : queued[slot]] = request.keys[first : first + queued[slot]]
        return Slots(
            prefix=prefix,
            token=token,
            temperature=np.full(count, self.settings.temperature, np.float32),
            top_k=np.full(count, min(self.settings.top_k, 2**31 - 1), np.int32),
            top_p=np.full(count, self.settings.top_p, np.float32),
            limit=np.full(count, self.settings.max_new_tokens, np.int32),
            sibling=self.next.copy(),
            queued=queued,
            keys=keys,
        )

    def absorb(self, rows: Rows, log: Log) -> list[tuple[int, int, int]]:
        """Take over what a chunk drew; returns (request, completion, earlier length) that grew."""
        self.rows = Rows(*(np.array(x) for x in rows))
        steps = int(log.steps)
        grown: list[tuple[int, int, int]] = []
        for slot in np.flatnonzero(self.request != EMPTY).tolist():
            index = int(self.request[slot])
            for row, now in enumerate(self.rows.sibling[slot].tolist()):
                siblings = log.sibling[:steps, slot, row]
                cuts = np.flatnonzero(np.diff(siblings)) + 1
                for span in np.split(np.arange(steps), cuts):
                    if steps == 0 or (sibling := int(siblings[span[0]])) == IDLE:
                        continue
                    grown += self._write(index, sibling, slot, row, log, span, sibling != now)
                    self.next[slot] = max(self.next[slot], sibling + 1)
                self.next[slot] = max(self.next[slot], now + 1)
            self._settle(slot)
        return grown

    def _write(
        self, index: int, sibling: int, slot: int, row: int, log: Log, span: np.ndarray, ended: bool
    ) -> list[tuple[int, int, int]]:
        draft = self.drafts[index][sibling]
        if draft.finish is not None:  # a stop text was found while the device went on
            return []
        before = len(draft.tokens)
        draft.tokens += log.token[span, slot, row].tolist()
        draft.logprobs += log.logprob[span, slot, row].tolist()
        self.useful_steps += len(span)
        if ended:
            draft.finish = "eos" if draft.tokens[-1] in self.settings.end_ids else "length"
        return [(index, sibling, before)]

    def _settle(self, slot: int) -> None:
        """Free the slot's rows whose completion was stopped, go on with its queue, or free it."""
        drafts = self.drafts[self.request[slot]]
        for row, sibling in enumerate(self.rows.sibling[slot].tolist()):
            if sibling != IDLE and drafts[sibling].finish is not None:
                self.rows.sibling[slot, row] = IDLE
        self._start_idle_rows(slot)
        if np.all(self.rows.sibling[slot] == IDLE):
            self.request[slot] = EMPTY

    def stop(self, index: int, sibling: int, length: int) -> None:
        """End a completion after `length` tokens because its text holds a stop text."""
        draft = self.drafts[index][sibling]
        self.useful_steps -= len(draft.tokens) - length
        del draft.tokens[length:], draft.logprobs[length:]
        draft.finish = "stop"
