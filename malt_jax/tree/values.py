"""Value iteration: leaf rewards are backed up a tree of any depth (docs/method.md, section 3).

Q trees with branching factors b_1 .. b_D are one array of leaf rewards `[Q, b_1, ..., b_D]`;
the values of level d are an array `[Q, b_1, ..., b_d]`. What is absent of ragged trees is NaN.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, get_args

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from malt_jax.tree.node import EQUAL, VALUE_DIGITS, Forest, Tree

Backup = Literal["mean", "max", "soft"]


def value_forest(
    forest: Forest, backup: Backup = "mean", softness: float = 0.25, threshold: float = 0.5
) -> Forest:
    """The forest with the value and the label of every node set from the rewards of its leaves."""
    if backup not in get_args(Backup):
        raise ValueError(f"backup: found {backup!r}, allowed: {', '.join(get_args(Backup))}")
    if not forest.trees:
        return forest
    back = back_up_ragged if forest.ragged else back_up
    values = forest.by_tree(back(forest.rewards, backup, softness))
    labels = np.asarray(label(jnp.asarray(np.concatenate(values), jnp.float32), threshold))
    ends = np.cumsum([len(own) for own in values])[:-1]
    rows = zip(forest.trees, values, np.split(labels, ends), strict=True)
    return Forest([_valued(*row) for row in rows])


def _valued(tree: Tree, values: np.ndarray, labels: np.ndarray) -> Tree:
    nodes = [
        replace(node, value=round(float(value), VALUE_DIGITS), label=bool(positive))
        for node, value, positive in zip(tree.nodes, values, labels, strict=True)
    ]
    return replace(tree, nodes=tuple(nodes))


def back_up(
    rewards: Float[Array, "Q *branches"], backup: Backup = "mean", softness: float = 0.25
) -> list[Float[Array, "Q *_"]]:
    """Values of every level, the root's children first, the leaves (the rewards) last.

    `mean`: V(node) = mean of its children's values, the published rule:
    V(v_ij) = mean_k V(r_ijk), V(g_i) = mean_j V(v_ij). `max`: their maximum. `soft`: the soft
    maximum tau log mean exp(V / tau), between the mean (large tau) and the maximum (tau -> 0).
    """
    depth = rewards.ndim - 1
    levels = []
    for level in range(1, depth + 1):
        # Empty at the last level, where each backup leaves the rewards as they are.
        below = tuple(range(level + 1, depth + 1))
        if backup == "mean":
            # All nodes of a level have the same number of leaves, so the mean of means is the mean
            # of the leaves. Taken at once, a tie with the threshold is exact and not a rounding.
            levels.append(rewards.mean(axis=below))
        elif backup == "max":
            levels.append(rewards.max(axis=below))
        else:
            # Soft maxima nest like means: tau log mean exp over all leaves at once.
            # The maximum is subtracted first, so that exp cannot overflow at a small softness.
            peak = rewards.max(axis=below, keepdims=True)
            spread = jnp.exp((rewards - peak) / softness).mean(axis=below, keepdims=True)
            soft = peak + softness * jnp.log(spread)
            levels.append(soft.reshape(rewards.shape[: level + 1]))
    return levels


def back_up_ragged(
    rewards: Float[Array, "Q *branches"], backup: Backup = "mean", softness: float = 0.25
) -> list[Float[Array, "Q *_"]]:
    """`back_up` of ragged trees, by the same definition: children count alike, not their leaves.

    Leaves do not, because adaptive branching puts more of them where outcomes differ: a mean over
    leaves would be drawn towards those children.
    """
    levels = [rewards]
    while (below := levels[0]).ndim > 2:
        above = (jnp.nanmean if backup == "mean" else jnp.nanmax)(below, axis=-1)
        if backup == "soft":
            spread = jnp.nanmean(jnp.exp((below - above[..., None]) / softness), axis=-1)
            above = above + softness * jnp.log(spread)
        levels.insert(0, above)
    return levels


def label(values: Float[Array, "*nodes"], threshold: float = 0.5) -> Bool[Array, "*nodes"]:
    """Positive iff the value is above the threshold, strictly; a tie is negative.

    Rounding can move a mean that ties with the threshold to either side, depending on the order of
    summation; within EQUAL it counts as a tie.
    """
    return values > threshold + EQUAL
