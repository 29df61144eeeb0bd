"""Attention of packed rows, for training: no matrix of weights outlives its block.

A block of queries looks at the keys up to its own end alone: what lies behind, none of its tokens
may see, so nearly half of the scores are never made. Of every softmax only maximum and sum are kept
for the backward pass, from which the weights are made again (FlashAttention, arXiv 2205.14135,
section 3.1). Exact: the plain softmax over `packed_mask`.

Two things are not as there, for a softmax that is sure has almost no gradient, and Adam makes whole
steps of what rounding leaves in its place: the weights do not come from the logarithm of the sum,
nor the softmax's gradient from the output.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from malt_jax.models.attention import MASKED

BLOCK, BLOCKS = 128, 8
"""Tokens of a block of queries, at least; blocks a row, at most."""


class Packing(NamedTuple):
    """How rows are made of sequences, of which some share a prompt."""

    positions: Int[Array, "B T"]
    """Place in the token's own sequence: a branch goes on from the end of its prompt."""
    segments: Int[Array, "B T"]
    """Which prompt a token belongs to, with the branches that share it; 0 is padding."""
    branches: Int[Array, "B T"]
    """0 for the prompt, b > 0 for its b-th continuation."""
    window: Int[Array, ""] | int | None
    """Keys further back than this many positions are invisible; None: all are visible."""


def packed_mask(packing: Packing, first: int = 0, end: int | None = None) -> Bool[Array, "B t S"]:
    """Who sees whom: queries `first` to `end`, keys 0 to `end`.

    A token sees itself and what came before it in its prompt and in its own branch.
    """
    positions, segments, branches = (x[:, :end] for x in packing[:3])
    order, query = jnp.arange(positions.shape[1], dtype=jnp.int32), slice(first, None)
    mine, branch = segments[:, query, None], branches[:, query, None]
    same = (mine == segments[:, None, :]) & (mine > 0)
    lineage = (branches[:, None, :] == 0) | (branches[:, None, :] == branch)
    mask = same & lineage & (order[query, None] >= order[None, :])[None]
    if packing.window is not None:
        mask &= positions[:, query, None] - positions[:, None, :] < packing.window
    return mask


def packed_attention(
    q: Float[Array, "B T H h"],
    k: Float[Array, "B T K h"],
    v: Float[Array, "B T K h"],
    packing: Packing,
    softcap: float | None,
) -> Float[Array, "B T H h"]:
    """Softmax attention, H/K query heads to a key head; `q` comes scaled, scores are float32."""
    batch, time, heads, head_dim = q.shape
    groups = k.shape[2]
    # Heads first, and those that share a key head side by side.
    q = jnp.moveaxis(q, 2, 1).reshape(batch, groups, heads // groups, time, head_dim)
    k, v = jnp.moveaxis(k, 2, 1), jnp.moveaxis(v, 2, 1)
    out = _attention(softcap, q, k, v, packing).reshape(batch, heads, time, head_dim)
    return jnp.moveaxis(out, 1, 2)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(
    softcap: float | None,
    q: Float[Array, "B K r T h"],
    k: Float[Array, "B K T h"],
    v: Float[Array, "B K T h"],
    packing: Packing,
) -> Float[Array, "B K r T h"]:
    return _forward(softcap, q, k, v, packing)[0]


def _forward(softcap, q, k, v, packing):
    outs, tops, totals = [], [], []
    for first, end in _blocks(q.shape[3]):
        scores, _ = _scores(softcap, q[:, :, :, first:end], k[:, :, :end], packing, first, end)
        top = jnp.max(scores, axis=-1, keepdims=True)
        weights = jnp.exp(scores - top)
        total = jnp.sum(weights, axis=-1, keepdims=True)
        mixed = jnp.einsum(
            "bkns,bksh->bknh",
            _tall(weights.astype(v.dtype)),
            v[:, :, :end],
            preferred_element_type=jnp.float32,
        )
        outs.append((mixed.reshape(*weights.shape[:-1], -1) / total).astype(q.dtype))
        tops.append(top)
        totals.append(total)
    out, top, total = (jnp.concatenate(parts, axis=3) for parts in (outs, tops, totals))
    return out, (q, k, v, packing, top, total)


def _backward(softcap, kept, d_out):
    q, k, v, packing, top, total = kept
    d_q, d_k, d_v = [], jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32)
    for first, end in _blocks(q.shape[3]):
        here, seen = slice(first, end), slice(0, end)
        some_q, some_out = q[:, :, :, here], d_out[:, :, :, here]
        scores, slope = _scores(softcap, some_q, k[:, :, seen], packing, first, end)
        weights = jnp.exp(scores - top[:, :, :, here]) / total[:, :, :, here]
        d_weights = _against(some_out, v[:, :, seen])
        mean = jnp.einsum("bkrts,bkrts->bkrt", weights, d_weights)[..., None]
        d_scores = weights * (d_weights - mean) * slope
        d_scores, weights = _tall(d_scores.astype(q.dtype)), _tall(weights.astype(q.dtype))
        d_q.append((d_scores @ k[:, :, seen]).reshape(some_q.shape))
        d_k = d_k.at[:, :, seen].add(_back(d_scores, _tall(some_q)))
        d_v = d_v.at[:, :, seen].add(_back(weights, _tall(some_out)))
    return jnp.concatenate(d_q, axis=3), d_k.astype(k.dtype), d_v.astype(v.dtype), None


_attention.defvjp(_forward, _backward)


def _blocks(time: int) -> list[tuple[int, int]]:
    """First and end of every block of queries."""
    size = max(BLOCK, -(-time // BLOCKS))
    return [(first, min(first + size, time)) for first in range(0, time, size)]


def _scores(
    softcap: float | None,
    q: Float[Array, "B K r t h"],
    k: Float[Array, "B K S h"],
    packing: Packing,
    first: int,
    end: int,
) -> tuple[Float[Array, "B K r t S"], Float[Array, "B K r t S"] | float]:
    """Masked scores, and their slope in the product of query and key."""
    scores = _against(q, k)
    slope = 1.0
    if softcap is not None:
        bent = jnp.tanh(scores / softcap)
        scores, slope = softcap * bent, 1.0 - bent * bent
    return jnp.where(packed_mask(packing, first, end)[:, None, None], scores, MASKED), slope


def _against(x: Float[Array, "B K r t h"], y: Float[Array, "B K S h"]) -> Float[Array, "B K r t S"]:
    """Every vector of x times every vector of y, in float32."""
    product = jnp.einsum("bknh,bksh->bkns", _tall(x), y, preferred_element_type=jnp.float32)
    return product.reshape(*x.shape[:-1], -1)


def _tall(x: Float[Array, "B K r t n"]) -> Float[Array, "B K rt n"]:
    """The heads that share a key head as one matrix: products of plain matrices are the fastest."""
    return x.reshape(*x.shape[:2], -1, x.shape[-1])


def _back(x: Float[Array, "B K n S"], y: Float[Array, "B K n h"]) -> Float[Array, "B K S h"]:
    """x^T y in float32, as the transpose of y^T x, which a CPU computes over twice as fast."""
    product = jnp.einsum("bknh,bkns->bkhs", y, x, preferred_element_type=jnp.float32)
    return jnp.swapaxes(product, 2, 3)
