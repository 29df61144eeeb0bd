"""Packing: several sequences per row without padding, and a shared prompt computed once.

A *segment* is a prompt with its completions, the *branches*; a *sequence* is a prompt with one
branch. In a row a segment is laid out as prompt, branch 1, branch 2, and so on. In each branch
positions continue from the end of the prompt, and the attention mask (`models.packed_attention`)
shows a token only its own prompt and its own branch. A branch therefore gets the same numbers as on
its own, and the prompt is computed once for all.

Only completion tokens are predicted. Each is a *target*, stored with the place in the row of the
token before it; a completion's first token follows the last token of the prompt.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np


class Segment(NamedTuple):
    """A prompt and the completions that share it."""

    prompt: tuple[int, ...]
    branches: tuple[tuple[int, ...], ...]
    sequences: tuple[int, ...]
    """Number of each branch among the caller's sequences."""

    @property
    def tokens(self) -> int:
        """Tokens that the segment takes in a packed row."""
        return len(self.prompt) + self.targets

    @property
    def targets(self) -> int:
        return sum(map(len, self.branches))

    @property
    def unshared(self) -> int:
        """Tokens if each branch had its own prompt: the useful tokens of throughput figures."""
        return len(self.prompt) * len(self.branches) + self.targets


class Shape(NamedTuple):
    """Static sizes of packed rows; every shape is one compiled program."""

    rows: int
    time: int
    """Tokens per row."""
    targets: int
    """Targets per row."""
    sequences: int
    """Branches per row."""


@dataclass(frozen=True)
class PackedRows:
    """The training step's input: rows of packed sequences, a pytree of NumPy or JAX arrays."""

    tokens: Any
    """[R T] int32."""
    positions: Any
    """[R T] int32: position in the token's own sequence."""
    segments: Any
    """[R T] int32: 1, 2, ... and 0 for padding."""
    branches: Any
    """[R T] int32: 0 for a prompt, b for its b-th completion."""
    targets: Any
    """[R C] int32: the tokens to predict."""
    sources: Any
    """[R C] int32: where in the row the token before each target lies."""
    weights: Any
    """[R C] float32: 1 for a target, 0 for padding."""
    slots: Any
    """[R C] int32: index, within the row, of the sequence a target belongs to."""
    sequences: Any
    """[R S] int32: number of each sequence among the caller's, -1 for none."""


jax.tree_util.register_dataclass(
    PackedRows, data_fields=[field.name for field in dataclasses.fields(PackedRows)], meta_fields=[]
)


def pack_rows(segments: Sequence[Segment], time: int) -> list[list[Segment]]:
    """Distributes segments over rows of `time` tokens by first-fit-decreasing.

    The result depends on the segments only. Raises ValueError for one that fits no row.
    """
    rows: list[list[Segment]] = []
    free: list[int] = []
    # The longest first, so that short ones fill what is left; numbers break ties, so the caller's
    # order has no influence.
    for segment in sorted(segments, key=lambda s: (-s.tokens, s.sequences)):
        if segment.tokens > time:
            raise ValueError(f"a segment of {segment.tokens} tokens in rows of {time}")
        for i, left in enumerate(free):
            if segment.tokens <= left:
                rows[i].append(segment)
                free[i] -= segment.tokens
                break
        else:
            rows.append([segment])
            free.append(time - segment.tokens)
    return rows


def lay(rows: Sequence[Sequence[Segment]], shape: Shape) -> PackedRows:
    """Arrays of at most `shape.rows` rows of segments; missing rows are padding."""

    def filled(width: int, fill: int = 0) -> np.ndarray:
        return np.full((shape.rows, width), fill, np.int32)

    # Padding keeps zeros. Token 0 is a real id, but segment 0 hides it from all other tokens.
    out = PackedRows(
        tokens=filled(shape.time),
        positions=filled(shape.time),
        segments=filled(shape.time),
        branches=filled(shape.time),
        targets=filled(shape.targets),
        sources=filled(shape.targets),
        weights=np.zeros((shape.rows, shape.targets), np.float32),
        slots=filled(shape.targets),
        sequences=filled(shape.sequences, -1),
    )
    for r, row in enumerate(rows):
        at = target = slot = 0
        for number, (prompt, branches, sequences) in enumerate(row, start=1):
            last = at + len(prompt) - 1
            # Each span is (branch, token ids, position of its first token); branch 0 is the prompt.
            spans = [(0, prompt, 0), *((b, ids, len(prompt)) for b, ids in enumerate(branches, 1))]
            for branch, ids, position in spans:
                end = at + len(ids)
                out.tokens[r, at:end] = ids
                out.positions[r, at:end] = np.arange(position, position + len(ids))
                out.segments[r, at:end] = number
                out.branches[r, at:end] = branch
                if branch:
                    place = slice(target, target + len(ids))
                    out.targets[r, place] = ids
                    # Not simply one place back: another branch may lie before a branch's first
                    # token.
                    out.sources[r, place] = [last, *range(at, end - 1)]
                    out.weights[r, place] = 1.0
                    # Branches of one segment get neighbouring slots; DPO reads them as pairs.
                    out.slots[r, place] = slot
                    out.sequences[r, slot] = sequences[branch - 1]
                    target, slot = target + len(ids), slot + 1
                at = end
    return out


def places(rows: PackedRows) -> Iterator[tuple[int, slice, int]]:
    """(row, its targets, number of the sequence) of every packed sequence."""
    for r, slots in enumerate(rows.slots):
        # A sequence's targets lie side by side, in the order of the slots.
        lengths = np.bincount(slots[rows.weights[r] > 0], minlength=rows.sequences.shape[1])
        ends = np.cumsum(lengths)
        for length, end, sequence in zip(lengths, ends, rows.sequences[r], strict=True):
            if sequence >= 0:
                yield r, slice(end - length, end), int(sequence)


def share_prompts(segments: Iterable[Segment], longest: int) -> list[Segment]:
    """Joins segments with equal prompts, as long as they stay within `longest` tokens.

    The result is in order of first appearance.
    """
    joined: list[Segment] = []
    # Only the latest segment of a prompt may grow; one that was too full is not tried again.
    latest: dict[tuple[int, ...], int] = {}
    for segment in segments:
        place = latest.get(segment.prompt)
        if place is not None and joined[place].tokens + segment.targets <= longest:
            before = joined[place]
            joined[place] = Segment(
                segment.prompt,
                before.branches + segment.branches,
                before.sequences + segment.sequences,
            )
        else:
            latest[segment.prompt] = len(joined)
            joined.append(segment)
    return joined
