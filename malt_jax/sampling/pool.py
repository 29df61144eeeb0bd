"""The host's side of a run: which prompt is in which slot, what waits for a row, who shares what.

Pending prompts are admitted in the order of their tokens, so prompts with a common head follow one
another, and a prompt is grown from the slot that holds the longest head of it.

On a mesh slots and rows are split into parts. Each part has a range of the prompts, takes from the
others' when it has none left, and shares heads only among its own slots, so none of it needs a word
from another part, and the host's work for a prompt does not grow with the mesh.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from malt_jax.sampling.memory import Shapes, together
from malt_jax.sampling.programs import IDLE, How, Log, Rows
from malt_jax.sampling.request import MAX_END_IDS, Completion, Request, Settings

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
        self, requests: Sequence[Request], settings: Settings, shapes: Shapes, parts: int = 1
    ):
        self.requests, self.settings, self.parts = requests, settings, parts
        self.drafts = [[Draft() for _ in request.keys] for request in requests]
        order = sorted(range(len(requests)), key=lambda i: requests[i].prompt)
        work = [share for i in order for share in _shares(i, len(requests[i].keys), shapes.width)]
        cuts = [round(part * len(work) / parts) for part in range(parts + 1)]
        self.pending = [deque(work[a:b]) for a, b in pairwise(cuts)]
        """Of each part of the mesh: completions whose prompt has no slot yet, a slot's together."""
        self.queues: list[deque[int]] = [deque() for _ in range(parts)]
        """Of each part: completions whose prompt has a slot, and that have no row yet."""
        self.completions = [(i, j) for i, request in enumerate(requests)
                            for j in range(len(request.keys))]  # fmt: skip
        """Request and place in it of the run's completions, by their number."""
        counts = [len(request.keys) for request in requests]
        self.first = np.cumsum([0, *counts[:-1]], dtype=np.int64)
        """Number of each request's first completion."""
        self.slot = np.full(len(self.completions), EMPTY)
        """The slot of each completion's prompt, once it has one."""
        self.rows = _idle(shapes.rows)
        self.queue_depth = shapes.slots // parts * shapes.width
        self.left = np.zeros(shapes.slots, np.int32)
        """Completions that each slot still has to see end."""
        self.resident = np.full((shapes.slots, shapes.places), EMPTY, np.int64)
        """The prefix tokens whose keys and values each slot holds, also after it is done."""
        ends = np.full(MAX_END_IDS, -1, np.int32)
        ends[: len(settings.end_ids)] = settings.end_ids
        self.how = How(
            temperature=np.float32(settings.temperature),
            top_k=np.int32(min(settings.top_k, 2**31 - 1)),
            top_p=np.float32(settings.top_p),
            limit=np.int32(settings.max_new_tokens),
            end_ids=ends,
        )
        self.useful_steps = 0

    @property
    def finished(self) -> bool:
        return not any(self.pending) and not np.any(self.left)

    def busy(self, part: int) -> int:
        """Rows that the part's completions in work take, or would."""
        rows = np.split(self.rows.completion, self.parts)[part]
        return int(np.sum(rows != IDLE)) + len(self.queues[part])

    def enough(self, lower: int) -> int:
        """Idle rows at which the host should look: some could be filled, or `lower` rows do."""
        rows = len(self.rows.completion)
        idle = sum(max(0, rows // self.parts - self.busy(part)) for part in range(self.parts))
        few = min(rows, idle + max(1, rows // 16))
        return few if any(self.pending) else max(few, rows - lower)

    def can_shrink(self, rows: int) -> bool:
        """Whether what is left of the run finds room in so many rows."""
        most = rows // self.parts
        return not any(self.pending) and all(self.busy(p) <= most for p in range(self.parts))

    def shrink(self, shapes: Shapes) -> tuple[np.ndarray, np.ndarray]:
        """Keep the shapes' numbers of slots and rows, those at work among them; returns which."""
        slots = _kept(self.left == 0, shapes.slots, self.parts)
        rows = _kept(self.rows.completion == IDLE, shapes.rows, self.parts)
        place = np.zeros(len(self.left), np.int32)
        place[slots] = np.arange(len(slots))
        self.rows = Rows(*(x[rows] for x in self.rows))
        self.rows = self.rows._replace(slot=place[self.rows.slot])
        self.slot = np.where(self.slot == EMPTY, EMPTY, place[self.slot])
        self.left, self.resident = self.left[slots], self.resident[slots]
        self.queue_depth = shapes.slots // self.parts * shapes.width
        return slots, rows

    def admit(self) -> list[Admission]:
        """Give every free slot a prompt, as long as there is any, and queue its completions."""
        admissions: list[Admission] = []
        waves: dict[int, int] = {}
        for part in range(self.parts):
            own = self._slots(part)
            free = [slot for slot in own if not self.left[slot]]
            while free and (share := self._take(part)):
                index, _ = self.completions[share[0]]
                target, admission = self._place(self.requests[index].prompt[:-1], own, free, waves)
                self.left[target], self.slot[share] = len(share), target
                self.queues[part] += share
                admissions += admission
                free.remove(target)
        return admissions

    def _slots(self, part: int) -> range:
        """The slots that a part of the mesh holds."""
        own = len(self.left) // self.parts
        return range(part * own, (part + 1) * own)

    def _take(self, part: int) -> range | None:
        """The completions a part's free slot sees to."""
        if pending := self.pending[part]:
            return self._numbers(*pending.popleft())
        if pending := max(self.pending, key=len):
            return self._numbers(*pending.pop())  # the furthest from what its own part works on
        return None

    def _numbers(self, index: int, first: int, end: int) -> range:
        return range(int(self.first[index]) + first, int(self.first[index]) + end)

    def _place(
        self, prefix: tuple[int, ...], own: range, free: list[int], waves: dict[int, int]
    ) -> tuple[int, list[Admission]]:
        """Choose the slot a prefix goes to and the one it grows from, both among `own`.

        If a free slot holds the longest head, it is grown in place: what a free slot held is
        never read by another, so the order of admissions in a wave does not matter.
        """
        wanted = np.asarray(prefix, np.int64)
        same = self.resident[own.start : own.stop, : len(prefix)] == wanted[None]
        shared = np.argmin(np.pad(same, ((0, 0), (0, 1))), axis=1)
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

    def waiting(self) -> Rows:
        """The queues `[parts, Q]`, as rows that begin them would stand."""
        queues = _idle(self.parts, self.queue_depth)
        for part, queue in enumerate(self.queues):
            for place, number in enumerate(queue):
                index, sibling = self.completions[number]
                request = self.requests[index]
                queues.completion[part, place] = number
                queues.slot[part, place] = self.slot[number]
                queues.prompt[part, place] = len(request.prompt) - 1
                queues.token[part, place] = request.prompt[-1]
                queues.key[part, place] = request.keys[sibling]
        return queues

    def absorb(self, rows: Rows, log: Log) -> list[tuple[int, int, int]]:
        """Take over what a chunk drew; returns (request, completion, earlier length) that grew."""
        self.rows = Rows(*(np.array(x) for x in rows))
        for queue, taken in zip(self.queues, log.taken.tolist(), strict=True):
            for _ in range(taken):
                queue.popleft()
        steps = int(log.steps)
        grown: list[tuple[int, int, int]] = []
        for row, now in enumerate(self.rows.completion.tolist()):
            numbers = log.completion[:steps, row]
            cuts = np.flatnonzero(np.diff(numbers)) + 1
            for span in np.split(np.arange(steps), cuts):
                if not len(span) or (number := int(numbers[span[0]])) == IDLE:
                    continue
                grown += self._write(number, row, log, span, number != now)
                self.left[self.slot[number]] -= number != now
            if now != IDLE and self._draft(now).finish is not None:
                # A stop text was found in it.
                self.rows.completion[row] = IDLE
                self.left[self.slot[now]] -= 1
        return grown

    def _write(
        self, number: int, row: int, log: Log, span: np.ndarray, ended: bool
    ) -> list[tuple[int, int, int]]:
        draft = self._draft(number)
        if draft.finish is not None:  # a stop text was found while the device went on
            return []
        before = len(draft.tokens)
        draft.tokens += log.token[span, row].tolist()
        draft.logprobs += log.logprob[span, row].tolist()
        self.useful_steps += len(span)
        if ended:
            draft.finish = "eos" if draft.tokens[-1] in self.settings.end_ids else "length"
        return [(*self.completions[number], before)]

    def _draft(self, number: int) -> Draft:
        index, sibling = self.completions[number]
        return self.drafts[index][sibling]

    def stop(self, index: int, sibling: int, length: int) -> None:
        """End a completion after `length` tokens because its text holds a stop text."""
        draft = self.drafts[index][sibling]
        self.useful_steps -= len(draft.tokens) - length
        del draft.tokens[length:], draft.logprobs[length:]
        draft.finish = "stop"


def _shares(index: int, completions: int, width: int) -> list[tuple[int, int, int]]:
    """A request's completions in equal shares for one slot each: (request, first, end)."""
    if not completions:
        return []
    size = together(completions, width)
    firsts = range(0, completions, size)
    return [(index, first, min(first + size, completions)) for first in firsts]


def _idle(*shape: int) -> Rows:
    numbers = [np.zeros(shape, np.int32) for _ in range(5)]
    numbers[0][:] = IDLE
    return Rows(*numbers, key=np.zeros((*shape, 2), np.uint32))


def _kept(idle: np.ndarray, count: int, parts: int) -> np.ndarray:
    """`count` places, as many of each part, those that are not idle first."""
    own = len(idle) // parts
    order = np.argsort(idle.reshape(parts, own), axis=1, kind="stable")[:, : count // parts]
    return np.sort(order + own * np.arange(parts)[:, None], axis=1).reshape(-1)
