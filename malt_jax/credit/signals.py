"""All signals of a forest by node id, so that sealed trees are read and never rewritten."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from malt_jax.credit.advantage import (
    global_advantage,
    normalised_advantage,
    ragged_global_advantage,
    sibling_advantage,
)
from malt_jax.credit.confidence import Posterior, above, posterior
from malt_jax.credit.repeats import pool_repeats
from malt_jax.credit.verdict import Reader, verdict_agreement
from malt_jax.tree.node import VALUE_DIGITS, Forest

SIGNALS = {
    "advantage": "value less the mean of the siblings",
    "normalised": "advantage in standard deviations of the siblings",
    "global": "mean reward below less that of all other leaves",
    "confidence": "probability that the true value is above the threshold",
    "verdict": "1 where the critique's verdict fits the answer it judges",
    "influence": "nats per token that the turn before adds",
    "divergence": "nats per token by which training made the turn likelier",
}
"""Every signal with what it is, in the order in which they are shown."""
Signals = dict[str, dict[str, float]]
"""Node id -> signal -> its number; a signal that a node does not have is left out."""


def node_signals(
    forest: Forest,
    *,
    threshold: float = 0.5,
    readers: Mapping[str, Reader] | None = None,
    measured: Mapping[str, Mapping[str, float]] | None = None,
) -> Signals:
    """What each node of a valued forest is credited with.

    `advantage`, `normalised` and `global`: see `credit.advantage`; the first two
    are of values pooled over equal siblings (`credit.repeats`). `confidence`: probability that the
    true value is above `threshold` (`credit.confidence`); nodes without children, whose value
    is their reward, have none. `verdict`: 1 if the turn judges its draft rightly, else 0, for roles
    with a reader (`credit.verdict`). `measured`: signals that cost a scoring pass, by name and node
    id: `influence`, how much the turn listened to the one before it (`credit.influence`), and
    `divergence`, how much likelier training has made it (`credit.divergence`). All are rounded as
    values are.
    """
    signals: Signals = {node.id: {} for tree in forest.trees for node in tree.nodes}
    # Trees of one shape are one array.
    shapes = dict.fromkeys((tree.branches, tree.ragged) for tree in forest.trees)
    for shape in shapes:
        alike = Forest([t for t in forest.trees if (t.branches, t.ragged) == shape])
        _add_arrays(signals, alike, threshold)
    for tree in forest.trees:
        for node, fits in verdict_agreement(tree, readers or {}).items():
            signals[node]["verdict"] = fits
    for name, numbers in (measured or {}).items():
        for node, number in numbers.items():
            signals[node][name] = round(number, VALUE_DIGITS) + 0.0
    return signals


def _add_arrays(signals: Signals, forest: Forest, threshold: float) -> None:
    """Adds the signals that are functions of the values and rewards of whole levels."""
    pooled = Forest([pool_repeats(tree) for tree in forest.trees])
    columns, posteriors = _arrays(forest.values, pooled.values, forest.rewards, forest.ragged)
    columns["confidence"] = [above(one, threshold) for one in posteriors]
    for name, levels in columns.items():
        for tree, row in zip(forest.trees, forest.by_tree(levels), strict=True):
            # Leaves come last in a tree, and it is they that a shorter row leaves out.
            for node, number in zip(tree.nodes, row.tolist(), strict=False):
                if not math.isnan(number):
                    # Adding zero turns -0.0 into 0.0.
                    signals[node.id][name] = round(number, VALUE_DIGITS) + 0.0


@partial(jax.jit, static_argnames="ragged")
def _arrays(
    values: list[Float[Array, "Q *_"]],
    pooled: list[Float[Array, "Q *_"]],
    rewards: Float[Array, "Q *branches"],
    ragged: bool = False,
) -> tuple[dict[str, list[Float[Array, "Q *_"]]], list[Posterior]]:
    """All levels in one program, because each operation of its own would be compiled by itself."""
    present = [~jnp.isnan(level) if ragged else None for level in values]
    depths = range(1, len(values) + 1)
    advantages = {
        "advantage": list(map(sibling_advantage, pooled, present)),
        "normalised": list(map(normalised_advantage, pooled, present)),
        "global": ragged_global_advantage(rewards)
        if ragged
        else [global_advantage(rewards, depth) for depth in depths],
    }
    # The children of a level's nodes are the next level.
    return advantages, list(map(posterior, values[1:], present[1:]))
