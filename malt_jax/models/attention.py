"""Plain XLA attention over explicit masks: the path every other one is checked against."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

# Large but finite: a row whose every key is masked must give numbers (ignored later), not NaN.
MASKED = -1e30


class LayerAttention(NamedTuple):
    """What is particular to one layer's attention."""

    window: Int[Array, ""] | int | None
    """Keys further back than this many positions are invisible; None: all are visible."""
    softcap: float | None


def grouped_attention(
    q: Float[Array, "B T H h"],
    k: Float[Array, "B S K h"],
    v: Float[Array, "B S K h"],
    mask: Bool[Array, "B T S"],
    softcap: float | None = None,
) -> Float[Array, "B T H h"]:
    """Softmax attention, H/K query heads to a key head; `q` comes scaled.

    Scores and softmax are in float32 whatever the inputs' dtype.
    """
    batch, time, heads, head_dim = q.shape
    groups = k.shape[2]
    shared = heads // groups
    # Heads first, and the heads that share a key head as one tall matrix: batched products of
    # plain matrices, which a CPU multiplies several times faster than the transposed ones.
    q, k, v = (jnp.moveaxis(x, 2, 1) for x in (q, k, v))
    q = q.reshape(batch, groups, shared * time, head_dim)
    scores = jnp.einsum("bkth,bksh->bkts", q, k, preferred_element_type=jnp.float32)
    scores = scores.reshape(batch, groups, shared, time, -1)
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    scores = jnp.where(mask[:, None, None], scores, MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    weights = weights.reshape(batch, groups, shared * time, -1)
    out = jnp.einsum("bkts,bksh->bkth", weights, v).reshape(batch, heads, time, head_dim)
    return jnp.moveaxis(out, 1, 2)


def packed_mask(
    positions: Int[Array, "B T"],
    segments: Int[Array, "B T"],
    branches: Int[Array, "B T"],
    window: Int[Array, ""] | int | None,
) -> Bool[Array, "B T T"]:
    """Who sees whom in rows that hold several sequences, some sharing a prompt.

    `segments`: the sequence a token belongs to, 0 for padding. `branches`: 0 for the shared
    prompt, b > 0 for its b-th continuation. A token sees earlier tokens of its own segment that
    are in the prompt or in its own branch; positions restart at each segment, and each branch
    goes on from the end of the prompt.
    """
    order = jnp.arange(positions.shape[1])
    same = (segments[:, :, None] == segments[:, None, :]) & (segments[:, :, None] > 0)
    lineage = (branches[:, None, :] == 0) | (branches[:, :, None] == branches[:, None, :])
    mask = same & lineage & (order[:, None] >= order[None, :])[None]
    if window is not None:
        mask &= positions[:, :, None] - positions[:, None, :] < window
    return mask
