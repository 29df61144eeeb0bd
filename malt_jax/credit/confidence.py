"""Confidence: how far a label can be trusted that comes from few leaves.

A value is an average over few samples of what follows a turn, so V > theta may hold by luck. How
much is luck can be measured on the forest itself by holding out child branches, as
`evaluation/calibration.py` does: what the other branches predict of the one held out is real, the
rest is noise. From this a prior over the true values of a role's nodes follows, and with it the
probability that a node's true value is above the threshold.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float
from scipy.special import betaincc


class Posterior(NamedTuple):
    """The distribution of the true values of a level's nodes, arrays `[*nodes]`."""

    a: Float[Array, "*nodes"]
    b: Float[Array, "*nodes"]


def posterior(
    children: Float[Array, "*nodes n"], present: Bool[Array, "*nodes n"] | None = None
) -> Posterior:
    """What n child branches say of the true value of their node.

    True values p are taken to be Beta distributed over the N nodes of the level, and a child branch
    to be worth e independent leaves. Three moments say all that is needed:

        m = mean of V,   s2 = mean over nodes of V_j V_k (j != k) - m^2,
        w = mean over nodes of the variance among children.

    Two branches of a node are independent given its p, so their products average to E[p^2] and s2
    is the variance of p; a branch predicts nothing of another if s2 = 0. A branch varies by
    E[p (1 - p)] / e around p, so e = (m (1 - m) - s2) / w, at least 1. The moments give the prior
    Beta(a, b) with a + b = m (1 - m) / s2 - 1, and n e leaves the posterior

        Beta(a + n e V, b + n e (1 - V)).

    N nodes do not prove that a moment is at the end of its range: m counts half a right and half a
    wrong node more, s2 is at least 1 / (N + 1) and at most N / (N + 1) of m (1 - m), and w at least
    1 / (N + 1) of it. So no label is certain, and few trees make none nearly so. NaN where n = 1,
    for nothing can be held out. Of ragged trees, `present` says which branches there are, and n is
    a node's own.
    """
    if children.shape[-1] == 1:
        unknown = jnp.full(children.shape[:-1], jnp.nan)
        return Posterior(unknown, unknown)
    counts = None if present is None else present.sum(axis=-1, dtype=children.dtype)
    n = children.shape[-1] if counts is None else counts
    # Nodes of a ragged tree, and those of them of which a branch can be held out.
    real = None if counts is None else counts > 0
    several = None if counts is None else counts > 1
    values = children.mean(axis=-1, where=present)
    nodes = values.size if real is None else real.sum(dtype=children.dtype)
    m = values.mean(where=real)
    # (sum^2 - sum of squares) / (n (n - 1)) is the mean product of two different branches.
    products = (n * values**2 - (children**2).mean(axis=-1, where=present)) / (n - 1)
    s2 = products.mean(where=several) - m**2
    w = children.var(axis=-1, ddof=1, where=present).mean(where=several)

    m = (nodes * m + 0.5) / (nodes + 1)
    most = m * (1 - m)
    s2 = jnp.clip(s2, most / (nodes + 1), most * nodes / (nodes + 1))
    total = most / s2 - 1
    leaves = n * jnp.maximum((most - s2) / jnp.maximum(w, most / (nodes + 1)), 1.0)
    return Posterior(total * m + leaves * values, total * (1 - m) + leaves * (1 - values))


def above(found: Posterior, threshold: float) -> Float[np.ndarray, "*nodes"]:
    """P(true value > theta) under a posterior."""
    # By scipy, because compiling JAX's incomplete beta function takes seconds for every new shape.
    return betaincc(np.asarray(found.a), np.asarray(found.b), threshold)
