"""From admissions to calls of the `extend` program: waves, pieces of bucket size, batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from malt_jax.sampling.pool import Admission


class Call(NamedTuple):
    """Arguments of one `extend`: entries whose target is the number of slots are padding."""

    source: np.ndarray
    target: np.ndarray
    tokens: np.ndarray
    start: np.ndarray
    length: np.ndarray


class _Piece(NamedTuple):
    source: int
    target: int
    start: int
    tokens: tuple[int, ...]
    size: int


def batch_size(size: int, prefill_tokens: int, slots: int) -> int:
    """Prompts in a call that gives each of them up to `size` tokens."""
    return max(1, min(slots, prefill_tokens // size))


def padding(size: int, prefill_tokens: int, slots: int) -> Call:
    """A call that does nothing, for its shapes."""
    return _call([], batch_size(size, prefill_tokens, slots), size, slots)


def calls(
    admissions: Sequence[Admission], slots: int, sizes: Sequence[int], prefill_tokens: int
) -> Iterator[Call]:
    """Calls in an order that lets every piece read what it grows from."""
    for wave in sorted({a.wave for a in admissions}):
        cut = [_pieces(a, sizes) for a in admissions if a.wave == wave]
        for turn in range(max(map(len, cut))):
            now = [pieces[turn] for pieces in cut if turn < len(pieces)]
            for size in sorted({piece.size for piece in now}):
                batch = batch_size(size, prefill_tokens, slots)
                same = [piece for piece in now if piece.size == size]
                for first in range(0, len(same), batch):
                    yield _call(same[first : first + batch], batch, size, slots)


def _pieces(admission: Admission, sizes: Sequence[int]) -> list[_Piece]:
    """A prompt's new tokens in pieces; one without tokens still copies its source."""
    source, start, tokens = admission.source, admission.start, admission.tokens
    pieces = []
    while tokens or not pieces:
        size = _size(len(tokens), sizes)
        pieces.append(_Piece(source, admission.target, start, tokens[:size], size))
        source, start, tokens = admission.target, start + size, tokens[size:]
    return pieces


def _size(count: int, sizes: Sequence[int]) -> int:
    """The bucket for the next piece: one that holds all with a quarter to spare, or a full one."""
    whole = [size for size in sizes if count <= size and 3 * size <= 4 * count]
    full = [size for size in sizes if size <= count]
    return whole[0] if whole else full[-1] if full else sizes[0]


def _call(pieces: Sequence[_Piece], batch: int, size: int, slots: int) -> Call:
    def column(values: list[int], padding: int) -> np.ndarray:
        return np.array(values + [padding] * (batch - len(values)), np.int32)

    tokens = np.zeros((batch, size), np.int32)
    for row, piece in enumerate(pieces):
        tokens[row, : len(piece.tokens)] = piece.tokens
    return Call(
        source=column([p.source for p in pieces], 0),
        target=column([p.target for p in pieces], slots),
        tokens=tokens,
        start=column([p.start for p in pieces], 0),
        length=column([len(p.tokens) for p in pieces], 0),
    )
