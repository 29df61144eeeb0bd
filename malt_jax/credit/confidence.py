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
from jaxtyping import Array, Float
from scipy.special import betaincc

LEAST = 1e-6
"""Variances below this count as 0: the nodes of the level do not differ, or not by chance."""


class Posterior(NamedTuple):
    """The distribution of the true values of a level's nodes, arrays `[*nodes]`."""

    a: Float[Array, "*nodes"]
    b: Float[Array, "*nodes"]
    certain: Float[Array, "*nodes"]
    """0 or 1 where no distribution is needed to tell on which side of theta the value is."""


def confidence(
    children: Float[Array, "*nodes n"], threshold: float = 0.5
) -> Float[np.ndarray, "*nodes"]:
    """P(the true value of a node > theta), given the values of its n child branches."""
    return above(posterior(children, threshold), threshold)


def posterior(children: Float[Array, "*nodes n"], threshold: float = 0.5) -> Posterior:
    """What n child branches say of the true value of their node.

    True values p are taken to be Beta distributed over the nodes of the level, and a child branch
    to be worth e independent leaves. Three moments say all that is needed:

        m = mean of V,   s2 = mean over nodes of V_j V_k (j != k) - m^2,
        w = mean over nodes of the variance among children.

    Two branches of a node are independent given its p, so their products average to E[p^2] and s2
    is the variance of p; a branch predicts nothing of another if s2 = 0. A branch varies by
    E[p (1 - p)] / e around p, so e = (m (1 - m) - s2) / w, at least 1. The moments give the prior
    Beta(a, b) with a + b = m (1 - m) / s2 - 1, and n e leaves the posterior

        Beta(a + n e V, b + n e (1 - V)).

    If the true values do not differ (s2 <= 0), all nodes have p = m. If branches never differ
    (w = 0), values are exact. NaN where n = 1, for nothing can be held out.
    """
    n = children.shape[-1]
    values = children.mean(axis=-1)
    if n == 1:
        unknown = jnp.full_like(values, jnp.nan)
        return Posterior(unknown, unknown, unknown)
    m = values.mean()
    # (sum^2 - sum of squares) / (n (n - 1)) is the mean product of two different branches.
    products = (n * values**2 - (children**2).mean(axis=-1)) / (n - 1)
    s2 = products.mean() - m**2
    w = children.var(axis=-1, ddof=1).mean()

    total = jnp.maximum(m * (1 - m) / jnp.maximum(s2, LEAST) - 1, LEAST)
    leaves = n * jnp.maximum((m * (1 - m) - s2) / jnp.maximum(w, LEAST), 1.0)
    exact, pooled = values > threshold, jnp.broadcast_to(m > threshold, values.shape)
    certain = jnp.where(w < LEAST, exact, pooled).astype(values.dtype)
    return Posterior(
        a=jnp.maximum(total * m + leaves * values, LEAST),
        b=jnp.maximum(total * (1 - m) + leaves * (1 - values), LEAST),
        certain=jnp.where((w < LEAST) | (s2 < LEAST), certain, jnp.nan),
    )


def above(found: Posterior, threshold: float) -> Float[np.ndarray, "*nodes"]:
    """P(true value > theta) under a posterior."""
    # By scipy, because compiling JAX's incomplete beta function takes seconds for every new shape.
    a, b, certain = map(np.asarray, found)
    return np.where(np.isnan(certain), betaincc(a, b, threshold), certain)
