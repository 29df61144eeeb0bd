"""From admissions to device calls: heads are copied, then new tokens are computed lane by lane.

A lane is a few consecutive tokens of one prompt. A call computes a fixed number of lanes, whatever
prompts they belong to: within a layer all keys and values are written before any is read, so lanes
of one prompt can be in one call, and only a prompt's last lane and the last call have padding.

On a mesh slots are split into parts, and so are a call's lanes: a part gets those of its own slots.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import NamedTuple, TypeVar

import numpy as np

from malt_jax.sampling.pool import Admission

_T = TypeVar("_T")
_Lane = tuple[int, int, tuple[int, ...]]
"""Target, start and tokens."""


class Fork(NamedTuple):
    """Arguments of one `fork`; a target that is the number of slots is padding."""

    source: np.ndarray
    target: np.ndarray


class Extend(NamedTuple):
    """Arguments of one `extend`; a lane whose target is the number of slots is padding."""

    target: np.ndarray
    tokens: np.ndarray
    start: np.ndarray
    length: np.ndarray


class Lanes(NamedTuple):
    """The shapes of prefill calls."""

    tokens: int
    """Of one lane."""
    counts: tuple[int, ...]
    """Lanes a call may have, rising."""

    @staticmethod
    def of(lane: int, call: int, parts: int = 1) -> Lanes:
        """Lanes of `lane` tokens, for calls of `call` tokens a part and of a quarter of that."""
        most = max(1, call // lane)
        return Lanes(min(lane, call), tuple(sorted({parts * max(1, most // 4), parts * most})))

    def padding(self, count: int, slots: int) -> Extend:
        """A call that does nothing, for its shapes."""
        return _extend([[]], self, count, slots)


def forks_at_once(slots: int, parts: int = 1) -> int:
    """Heads one `fork` copies."""
    return parts * max(1, slots // parts // 8)


def no_forks(slots: int, parts: int = 1) -> Fork:
    """A call that does nothing, for its shapes."""
    return _fork([[]], forks_at_once(slots, parts), slots)


def calls(
    admissions: Sequence[Admission], slots: int, lanes: Lanes, parts: int = 1
) -> Iterator[Fork | Extend]:
    """Calls in an order that lets each read what it grows from."""

    def dealt(wave: Iterable[Admission]) -> list[list[Admission]]:
        """Each part's admissions."""
        by_part: list[list[Admission]] = [[] for _ in range(parts)]
        for admission in wave:
            by_part[admission.target * parts // slots].append(admission)
        return by_part

    by_wave = sorted(admissions, key=lambda a: a.wave)
    for _, group in groupby(by_wave, key=lambda a: a.wave):
        wave = dealt(group)
        heads = [[a for a in part if a.source != a.target and a.start] for part in wave]
        count = forks_at_once(slots, parts)
        while any(heads):
            yield _fork([part[: count // parts] for part in heads], count, slots)
            heads = [part[count // parts :] for part in heads]
        todo = [list(_lanes(part, lanes.tokens)) for part in wave]
        while any(todo):
            # The largest call that some part fills, or the smallest.
            filled = [n for n in lanes.counts if n // parts <= max(map(len, todo))]
            count = filled[-1] if filled else lanes.counts[0]
            yield _extend([part[: count // parts] for part in todo], lanes, count, slots)
            todo = [part[count // parts :] for part in todo]


def _lanes(admissions: Iterable[Admission], tokens: int) -> Iterator[_Lane]:
    for a in admissions:
        for first in range(0, len(a.tokens), tokens):
            yield a.target, a.start + first, a.tokens[first : first + tokens]


def _places(todo: Sequence[Sequence[_T]], count: int) -> Iterator[tuple[int, _T]]:
    """Each part's items with their places in a call of `count`."""
    for part, items in enumerate(todo):
        yield from enumerate(items, start=part * count // len(todo))


def _fork(heads: Sequence[Sequence[Admission]], count: int, slots: int) -> Fork:
    call = Fork(np.zeros(count, np.int32), np.full(count, slots, np.int32))
    for place, admission in _places(heads, count):
        call.source[place], call.target[place] = admission.source, admission.target
    return call


def _extend(todo: Sequence[Sequence[_Lane]], lanes: Lanes, count: int, slots: int) -> Extend:
    call = Extend(
        target=np.full(count, slots, np.int32),
        tokens=np.zeros((count, lanes.tokens), np.int32),
        start=np.zeros(count, np.int32),
        length=np.zeros(count, np.int32),
    )
    for place, (target, start, tokens) in _places(todo, count):
        call.target[place], call.start[place], call.length[place] = target, start, len(tokens)
        call.tokens[place, : len(tokens)] = tokens
    return call
