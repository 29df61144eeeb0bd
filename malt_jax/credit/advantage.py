"""Advantages: how much better a turn did than what else could have been said in its place.

Siblings continue the same prefix, so they differ in one turn only: their other values are what
would have happened without this turn, and subtracting them removes the credit of what came before.
Values of level d are an array `[Q, b_1, ..., b_d]`, so siblings lie along the last axis. Of ragged
trees `present` says which of them there are.
"""

from __future__ import annotations

import math

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from malt_jax.tree.node import EQUAL
from malt_jax.tree.values import back_up_ragged

Present = Bool[Array, "*prefix n"] | None
"""Which siblings there are; None: all of them."""


def sibling_advantage(
    values: Float[Array, "*prefix n"], present: Present = None
) -> Float[Array, "*prefix n"]:
    """A(x) = V(x) - mean of V over its siblings without x.

    The leave-one-out baseline in a frozen context (C3, arXiv 2603.06859). The baseline does not
    contain x, so A(x) is an unbiased estimate of V(x) - V(prefix) where the number of siblings is
    fixed. An only child has no counterfactual and gets 0. So does a turn that is as good as its
    siblings up to the rounding of values, which must not make it better or worse than them.
    """
    if values.shape[-1] == 1:
        return jnp.zeros_like(values)
    n = values.shape[-1] if present is None else _count(present, values)
    mean = values.mean(axis=-1, keepdims=True, where=present)
    # V - (n mean - V) / (n - 1), with both terms over n - 1; an only child is its own mean.
    advantage = (values - mean) * (n / jnp.maximum(n - 1, 1))
    return jnp.where(jnp.abs(advantage) < EQUAL, jnp.zeros_like(values), advantage)


def normalised_advantage(
    values: Float[Array, "*prefix n"], present: Present = None
) -> Float[Array, "*prefix n"]:
    """A(x) / std of V over x and its siblings; the group is the role and the prefix.

    With the population's standard deviation. As A(x) leaves x out of its baseline, this is
    n / (n - 1) times (V(x) - mean of V) / std, the advantage of GRPO. AT-GRPO (arXiv 2510.11062)
    groups by role and turn, as here; Dr. MAS (2602.08847) normalises over all turns of an agent and
    not within a prefix. A group whose values are all equal has a std of 0 and says nothing about
    its turns: it gets 0. Unlike A(x), the quotient is a biased estimate, because a group with one
    exception has a small std and its exception a large advantage.
    """
    equal = _all_equal(values, present)
    std = values.std(axis=-1, keepdims=True, where=present)
    # 1 in place of a std near 0, because `where` would still compute 0 / 0 in its other branch.
    std = jnp.where(equal, jnp.ones_like(equal, values.dtype), std)
    return sibling_advantage(values, present) / std


def global_advantage(rewards: Float[Array, "Q *branches"], level: int) -> Float[Array, "Q *_"]:
    """Mean reward below x minus the mean reward of all other leaves, for the nodes of a level.

    What the whole path down to x is worth, beside what x itself adds (the local advantage, which is
    `sibling_advantage`). TreeRL sums global and local advantages, Tree-GRPO (arXiv 2509.21240)
    those within a tree and those between the trees of a question; neither is done here. `level`
    counts from 1. A node above all leaves has nothing to be compared with and gets 0.
    """
    leaves = math.prod(rewards.shape[1:])
    below = math.prod(rewards.shape[level + 1 :])
    means = rewards.mean(axis=tuple(range(level + 1, rewards.ndim)))
    if below == leaves:
        return jnp.zeros_like(means)
    root = rewards.mean(axis=tuple(range(1, rewards.ndim))).reshape(-1, *[1] * level)
    # With N leaves and n of them below x: V - (N root - n V) / (N - n).
    return (means - root) * (leaves / (leaves - below))


def ragged_global_advantage(rewards: Float[Array, "Q *branches"]) -> list[Float[Array, "Q *_"]]:
    """`global_advantage` of every level of ragged trees, whose absent leaves are NaN.

    A leaf weighs w = 1 / (number of siblings), multiplied over its path, so that V(root) is the sum
    of w r, and a node weighs W, the sum of w below it. Then V less the mean of all other leaves is
    (V - V(root)) / (1 - W), which is the same number where all leaves weigh alike.
    """
    levels = back_up_ragged(rewards)
    root = jnp.nanmean(levels[0], axis=-1)
    weight, found = jnp.ones_like(root), []
    for values in levels:
        siblings = _count(~jnp.isnan(values), values)
        weight = jnp.broadcast_to(weight[..., None] / siblings, values.shape)
        above = root.reshape(-1, *[1] * (values.ndim - 1))
        rest = jnp.where(weight < 1, 1 - weight, jnp.ones_like(weight))
        found.append(jnp.where(weight < 1, (values - above) / rest, jnp.zeros_like(values)))
    return found


def _count(present: Bool[Array, "*prefix n"], values: Float[Array, "*prefix n"]) -> Array:
    """How many siblings each prefix has, as a number of the values' type; `[*prefix, 1]`."""
    return present.sum(axis=-1, keepdims=True, dtype=values.dtype)


def _all_equal(values: Float[Array, "*prefix n"], present: Present = None) -> Array:
    """Whether siblings have one value, up to rounding; `[*prefix, 1]`."""
    most = values.max(axis=-1, keepdims=True, where=present, initial=-jnp.inf)
    least = values.min(axis=-1, keepdims=True, where=present, initial=jnp.inf)
    return most - least < EQUAL
