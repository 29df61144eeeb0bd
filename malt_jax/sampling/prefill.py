"""From admissions to device calls: heads are copied, then new tokens are computed lane by lane.

A lane is a few consecutive tokens of one prompt. A call computes a fixed number of lanes, whatever
prompts they belong to: within a layer all keys and values are written before any is read, so lanes
of one prompt can be in one call, and only a prompt's last lane and the last call have padding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np

from malt_jax.sampling.pool import Admission


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
    def of(lane: int, call: int) -> Lanes:
        """Lanes of `lane` tokens, for calls of `call` tokens and of a quarter of that."""
        most = max(1, call // lane)
        return Lanes(min(lane, call), tuple(sorted({max(1, most // 4), most})))

    def padding(self, count: int, slots: int) -> Extend:
        """A call that does nothing, for its shapes."""
        return _extend([], self, count, slots)


def forks_at_once(slots: int) -> int:
    """Heads one `fork` copies."""
    return max(1, slots // 8)


def no_forks(slots: int) -> Fork:
    """A call that does nothing, for its shapes."""
    return _fork([], slots)


def calls(admissions: Sequence[Admission], slots: int, lanes: Lanes) -> Iterator[Fork | Extend]:
    """Calls in an order that lets each read what it grows from."""
    by_wave = sorted(admissions, key=lambda a: a.wave)
    for _, group in groupby(by_wave, key=lambda a: a.wave):
        wave = list(group)
        heads = [a for a in wave if a.source != a.target and a.start]
        at_once = forks_at_once(slots)
        for first in range(0, len(heads), at_once):
            yield _fork(heads[first : first + at_once], slots)
        todo = [
            (a.target, a.start + first, a.tokens[first : first + lanes.tokens])
            for a in wave
            for first in range(0, len(a.tokens), lanes.tokens)
        ]
        while todo:
            # The largest call that is filled, or the smallest that holds all.
            filled = [n for n in lanes.counts if n <= len(todo)]
            count = filled[-1] if filled else lanes.counts[0]
            yield _extend(todo[:count], lanes, count, slots)
            todo = todo[count:]


def _fork(heads: Sequence[Admission], slots: int) -> Fork:
    source = np.zeros(forks_at_once(slots), np.int32)
    target = np.full(forks_at_once(slots), slots, np.int32)
    for place, admission in enumerate(heads):
        source[place], target[place] = admission.source, admission.target
    return Fork(source, target)


def _extend(
    todo: Sequence[tuple[int, int, tuple[int, ...]]], lanes: Lanes, count: int, slots: int
) -> Extend:
    call = Extend(
        target=np.full(count, slots, np.int32),
        tokens=np.zeros((count, lanes.tokens), np.int32),
        start=np.zeros(count, np.int32),
        length=np.zeros(count, np.int32),
    )
    for place, (target, start, tokens) in enumerate(todo):
        call.target[place], call.start[place], call.length[place] = target, start, len(tokens)
        call.tokens[place, : len(tokens)] = tokens
    return call
