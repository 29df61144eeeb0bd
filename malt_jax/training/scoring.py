"""Passes without gradients: log-probabilities of completions, divergence of two policies."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from flax import nnx
from jax.sharding import Mesh

from malt_jax.data.packing import PackedRows, places
from malt_jax.models.sharding import on_mesh, to_host
from malt_jax.training.placement import place_rows
from malt_jax.training.plan import Plan
from malt_jax.training.step import Program, Trainable, divergence, score_rows, score_targets


def score_plan(
    program: Program,
    trainable: Trainable | None,
    frozen: nnx.State | None,
    plan: Plan,
    sequences: int,
    mesh: Mesh | None = None,
    on_batch: Callable[[], None] = lambda: None,
) -> tuple[np.ndarray, np.ndarray]:
    """Log-probability and length of every completion in a plan: two float32 `[sequences]` arrays.

    Sequences that the plan does not hold are NaN. `on_batch` is called before each batch; an
    exception it raises ends the call.
    """
    # Begun as NaN, so that a missing sequence is never taken for one of log-probability 0.
    logprobs, lengths = (np.full(sequences, np.nan, np.float32) for _ in range(2))
    for rows, placed in _each(plan, mesh, on_batch):
        sums, counts = score_rows(program, trainable, frozen, placed)
        there = rows.sequences >= 0
        # `to_host` gathers over all processes, so every process goes through the whole plan.
        logprobs[rows.sequences[there]] = to_host(sums)[there]
        lengths[rows.sequences[there]] = to_host(counts)[there]
    return logprobs, lengths


def score_tokens(
    program: Program,
    trainable: Trainable | None,
    frozen: nnx.State | None,
    plan: Plan,
    lengths: Sequence[int],
    mesh: Mesh | None = None,
    on_batch: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """Log-probability of every token of a plan's completions, one completion after the other.

    `lengths` are those of the completions. Tokens that the plan does not hold are NaN.
    """
    ends = np.cumsum(lengths)
    logprobs = np.full(sum(lengths), np.nan, np.float32)
    for rows, placed in _each(plan, mesh, on_batch):
        found = to_host(score_targets(program, trainable, frozen, placed))
        for r, targets, sequence in places(rows):
            logprobs[ends[sequence] - lengths[sequence] : ends[sequence]] = found[r, targets]
    return logprobs


def mean_divergence(
    program: Program,
    ours: Trainable,
    theirs: Trainable,
    frozen: nnx.State | None,
    plan: Plan,
    mesh: Mesh | None = None,
) -> float:
    """KL(ours || theirs) of the next token, a mean over the completion tokens of a plan."""
    total = tokens = 0.0
    for rows, placed in _each(plan, mesh):
        total += float(divergence(program, ours, theirs, frozen, placed))
        tokens += float(rows.weights.sum())
    return total / tokens


def _each(
    plan: Plan, mesh: Mesh | None, on_batch: Callable[[], None] = lambda: None
) -> Iterator[tuple[PackedRows, PackedRows]]:
    """The rows of every micro-batch of a plan, on the host and on the devices."""
    with on_mesh(mesh):
        for micro in (micro for step in plan.steps for micro in step):
            on_batch()
            rows = micro.arrays()
            yield rows, place_rows(rows, mesh)
