"""Confidence: how far a label can be trusted that comes from few leaves.

A value is an average over few samples of what follows a turn, so V > theta may hold by luck. How
much is luck can be measured on the forest itself by holding out child branches, as
`evaluation/calibration.py` does: what the other branches predict of the one held out is real, the
rest is noise. From this a prior over the true values of a role's nodes follows, and with it the
probability that a node's true value is above the threshold.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax.scipy.special import betainc
from jaxtyping import Array, Float

LEAST = 1e-6
"""Variances below this count as 0: the nodes of the level do not differ, or not by chance."""


def confidence(
    children: Float[Array, "*nodes n"], threshold: float = 0.5
) -> Float[Array, "*nodes"]:
    """P(the true value of a node > theta), given the values of its n child branches.

    True values p are taken to be Beta distributed over the nodes of the level, and a child branch
    to be worth e independent leaves. Three moments say all that is needed:

        m = mean of V,   s2 = mean over nodes of V_j V_k (j != k) - m^2,
        w = mean over nodes of the variance among children.

    Two branches of a node are independent given its p, so their products average to E[p^2] and s2
    is the variance of p (never below 0); a branch predicts nothing of another if s2 = 0. A branch
    varies by E[p (1 - p)] / e around p, so e = (m (1 - m) - s2) / w, at least 1. Beta moments then
    give the prior Beta(a, b), a + b = m (1 - m) / s2 - 1, and the posterior after n e leaves is

        Beta(a + n e V, b + n e (1 - V)).

    If the true values do not differ (s2 = 0), all nodes have p = m. If branches never differ
    (w = 0), values are exact. NaN where n = 1, for nothing can be held out.
    """
    n = children.shape[-1]
    values = children.mean(axis=-1)
    if n == 1:
        return jnp.full_like(values, jnp.nan)
    m = values.mean()
    # (sum^2 - sum of squares) / (n (n - 1)) is the mean product of two different branches.
    products = (n * values**2 - (children**2).mean(axis=-1)) / (n - 1)
    s2 = products.mean() - m**2
    w = children.var(axis=-1, ddof=1).mean()
    exact = (values > threshold).astype(values.dtype)
    pooled = jnp.broadcast_to((m > threshold).astype(values.dtype), values.shape)

    total = jnp.maximum(m * (1 - m) / jnp.maximum(s2, LEAST) - 1, LEAST)
    leaves = n * jnp.maximum((m * (1 - m) - s2) / jnp.maximum(w, LEAST), 1.0)
    a = jnp.maximum(total * m + leaves * values, LEAST)
    b = jnp.maximum(total * (1 - m) + leaves * (1 - values), LEAST)
    posterior = 1 - betainc(a, b, jnp.full_like(values, threshold))
    return jnp.where(w < LEAST, exact, jnp.where(s2 < LEAST, pooled, posterior))
