"""The plan of a phase: which packed rows every step computes, fixed before the first step.

A step's batch is packed into rows and computed in *micro-batches* of few fixed shapes, because each
shape is one compiled program. All processes derive the same plan from the same data, so their step
counts are equal by construction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from malt_jax.data.packing import PackedRows, Segment, Shape, lay, pack_rows
from malt_jax.models.spec import ModelSpec

LADDER = tuple(base << shift for shift in range(5, 18) for base in (2, 3))
"""Allowed row lengths: 64, 96, 128, 192, 256, ... Few, so that roles share compiled programs."""

OVERHEAD_TOKENS = 128
"""Cost of starting a micro-batch, in units of computing one token."""

PROGRAM_TOKENS = 20_000
"""Cost of compiling one more shape, in units of computing one token."""


@dataclass(frozen=True)
class MicroBatch:
    """Packed rows that are computed together."""

    shape: Shape
    rows: tuple[tuple[Segment, ...], ...]

    def arrays(self) -> PackedRows:
        return lay(self.rows, self.shape)


@dataclass(frozen=True)
class Plan:
    """The micro-batches of every step."""

    steps: tuple[tuple[MicroBatch, ...], ...]

    @property
    def useful_tokens(self) -> int:
        """Prompt and completion tokens of every sequence, as if no prompt were shared."""
        return sum(s.unshared for micro in self._micros() for row in micro.rows for s in row)

    @property
    def row_tokens(self) -> int:
        """Tokens computed, padding included."""
        return sum(micro.shape.rows * micro.shape.time for micro in self._micros())

    @property
    def padding_waste(self) -> float:
        """Share of the computed tokens that is padding."""
        real = sum(s.tokens for micro in self._micros() for row in micro.rows for s in row)
        return 1.0 - real / max(self.row_tokens, 1)

    def _micros(self) -> list[MicroBatch]:
        return [micro for step in self.steps for micro in step]


def plan_steps(
    batches: Sequence[Sequence[Segment]],
    spec: ModelSpec,
    micro_tokens: int,
    *,
    row_multiple: int = 1,
    row_length: int = 0,
) -> Plan:
    """Packs each batch; row lengths and rows per micro-batch are chosen for the least computing.

    Two designs are tried: all rows of one length, and a shorter length with a longer one for the
    segments that do not fit it. `row_multiple`: the number of devices that the rows of a
    micro-batch are split over. `row_length` fixes the length.
    """
    longest = max((s.tokens for batch in batches for s in batch), default=1)
    top = next(length for length in LADDER if length >= longest)
    # Candidates: every ladder length that holds all, or a short one plus `top`; the cost is
    # estimated on at most about 128 batches.
    choices: list[tuple[int, ...]]
    if row_length and row_length >= longest:
        choices = [(row_length,)]
    else:
        choices = [(length,) for length in LADDER if top <= length <= max(top, micro_tokens)]
        choices += [(length, top) for length in LADDER if longest // 4 <= length < top]
    sample = batches[:: max(1, len(batches) // 64)]
    # Rows at once: powers of two per device, up to `micro_tokens`. One row per device is always
    # among them, because the longest segment must be computed in any case.
    sizes = [
        (
            lengths,
            tuple(_rows_at_once(length, rows, micro_tokens, row_multiple) for length in lengths),
        )
        for lengths in choices
        for rows in (1, 2, 4, 8, 16, 32, 64, 128)
        if rows == 1 or rows * row_multiple * lengths[0] <= micro_tokens
    ]
    attention = _attention_share(spec)

    def cost(size: tuple[tuple[int, ...], tuple[int, ...]]) -> float:
        total = 0.0
        for batch in sample:
            for (time, rows), packed in _pack(batch, size).items():
                # Every token attends along its row, so the cost of a row grows with the square of
                # its length. A micro-batch that is not full costs as much as a full one.
                tokens = rows * time * (1 + attention * time) + OVERHEAD_TOKENS * row_multiple
                total += -(-len(packed) // rows) * tokens
        # Computing is extended from the sample to all batches; a shape is compiled once.
        return total * len(batches) / max(len(sample), 1) + PROGRAM_TOKENS * len(size[0])

    best = min(sizes, key=cost)
    packed = [_pack(batch, best) for batch in batches]
    # The most branches that a row of each length holds in any step, so that all steps of the phase
    # have one shape per length.
    most: dict[int, int] = {}
    for step in packed:
        for (time, _), rows in step.items():
            branches = max(sum(len(s.branches) for s in row) for row in rows)
            most[time] = max(most.get(time, 0), branches)
    return Plan(tuple(_micros(step, most) for step in packed))


def _rows_at_once(length: int, rows: int, micro_tokens: int, multiple: int) -> int:
    return multiple * max(1, min(rows, micro_tokens // (length * multiple)))


def _pack(
    batch: Sequence[Segment], size: tuple[tuple[int, ...], tuple[int, ...]]
) -> dict[tuple[int, int], list[list[Segment]]]:
    """{(row length, rows at once): rows}; each segment goes to the shortest length it fits."""
    packed = {}
    rest = list(batch)
    # The shorter length comes first, so the longer one takes only what does not fit it.
    for time, rows in zip(*size, strict=True):
        here = [s for s in rest if s.tokens <= time]
        rest = [s for s in rest if s.tokens > time]
        if here:
            packed[time, rows] = pack_rows(here, time)
    return packed


def _micros(
    step: dict[tuple[int, int], list[list[Segment]]], most: dict[int, int]
) -> tuple[MicroBatch, ...]:
    micros = []
    for (time, rows), packed in step.items():
        # The sizes follow from the length wherever possible, so that other data meets the same
        # compiled program: room for a target at every token, and for one sequence per 8 tokens.
        # The number is even, because a pair is two sequences of a row.
        sequences = max(2 * -(-time // 16), 1 << (most[time] - 1).bit_length())
        shape = Shape(rows, time, time, sequences)
        for first in range(0, len(packed), rows):
            micros.append(MicroBatch(shape, tuple(map(tuple, packed[first : first + rows]))))
    return tuple(micros)


def _attention_share(spec: ModelSpec) -> float:
    """Cost of attending to one more token, relative to all matrix products of a token.

    Half of the scores are never computed, and the others run at about a third of the projections'
    speed. For SmolLM2-135M this gives 2.4e-4, the same as measured on a CPU at 768 to 1,536 tokens.
    """
    # The weights of a layer: q and o, k and v, and the three matrices of the MLP. Embedding and
    # head are left out.
    heads, kv = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    weights = spec.d_model * (2 * heads + 2 * kv + 3 * spec.active_mlp)
    return 1.5 * heads / weights
