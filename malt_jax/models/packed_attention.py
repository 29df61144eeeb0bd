"""Attention over packed rows for training, exact, in blocks of queries.

A block of queries is compared only with the keys up to its own end, since none of its tokens may
see a later one: nearly half of the scores are never computed, and no attention matrix outlives its
block. For the backward pass only the maximum and the sum of each softmax are kept, and the weights
are computed again (FlashAttention, arXiv 2205.14135, section 3.1).

Differs from FlashAttention in two ways, because Adam amplifies rounding noise where a saturated
softmax's gradient is near zero: the weights are recomputed from maximum and sum and not from the
log-sum-exp, and the mean that the softmax's gradient subtracts is summed over the keys and not
taken from the output.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from malt_jax.models.attention import MASKED

BLOCK, BLOCKS = 128, 8
"""At least this many queries per block, and at most this many blocks per row."""


class Packing(NamedTuple):
    """Where each token of packed rows belongs: which prompt, which continuation, which position."""

    positions: Int[Array, "B T"]
    """Position in the token's own sequence: a branch continues from the end of its prompt."""
    segments: Int[Array, "B T"]
    """Number of the prompt that the token belongs to, shared by its branches; 0 is padding."""
    branches: Int[Array, "B T"]
    """0 for the prompt, b > 0 for its b-th continuation."""
    window: Int[Array, ""] | int | None
    """Keys further back than this many positions are invisible; None: all are visible."""


def packed_mask(packing: Packing, first: int = 0, end: int | None = None) -> Bool[Array, "B t S"]:
    """The attention mask of the queries from `first` to `end` over the keys from 0 to `end`.

    A token sees itself and the earlier tokens of its prompt and of its own branch.
    """
    # The order in the row decides what is earlier, since branches share positions. Only the window
    # counts positions: in the row, other branches may lie between a token and its prompt.
    positions, segments, branches = (x[:, :end] for x in packing[:3])
    order, query = jnp.arange(positions.shape[1], dtype=jnp.int32), slice(first, None)
    mine, branch = segments[:, query, None], branches[:, query, None]
    # Padding (segment 0) sees no key at all; its result is a number because MASKED is finite.
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
    sinks: Float[Array, "H"] | None = None,
) -> Float[Array, "B T H h"]:
    """Softmax attention, H/K query heads per key head; `q` arrives scaled, scores are float32.

    `sinks`: one more score per head, without a value.
    """
    batch, time, heads, head_dim = q.shape
    groups = k.shape[2]
    # Heads come first, and those that share a key head lie side by side.
    q = jnp.moveaxis(q, 2, 1).reshape(batch, groups, heads // groups, time, head_dim)
    k, v = jnp.moveaxis(k, 2, 1), jnp.moveaxis(v, 2, 1)
    if sinks is not None:
        sinks = sinks.astype(jnp.float32).reshape(1, groups, heads // groups, 1, 1)
    out = _attention(softcap, q, k, v, packing, sinks).reshape(batch, heads, time, head_dim)
    return jnp.moveaxis(out, 1, 2)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(
    softcap: float | None,
    q: Float[Array, "B K r T h"],
    k: Float[Array, "B K T h"],
    v: Float[Array, "B K T h"],
    packing: Packing,
    sinks: Float[Array, "1 K r 1 1"] | None,
) -> Float[Array, "B K r T h"]:
    return _forward(softcap, q, k, v, packing, sinks)[0]


def _forward(softcap, q, k, v, packing, sinks):
    outs, tops, totals = [], [], []
    # Unrolled, since the number of keys grows from block to block and shapes are static.
    for first, end in _blocks(q.shape[3]):
        scores, _ = _scores(softcap, q[:, :, :, first:end], k[:, :, :end], packing, first, end)
        # A softmax in its stable form. The division by the sum waits until the values are mixed,
        # where it touches one row per query and not one per query and key.
        top = jnp.max(scores, axis=-1, keepdims=True)
        if sinks is not None:
            top = jnp.maximum(top, sinks)
        weights = jnp.exp(scores - top)
        total = jnp.sum(weights, axis=-1, keepdims=True)
        if sinks is not None:
            total = total + jnp.exp(sinks - top)
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
    return out, (q, k, v, packing, sinks, top, total)


def _backward(softcap, kept, d_out):
    q, k, v, packing, sinks, top, total = kept
    d_sinks: Any = None if sinks is None else jnp.zeros_like(sinks)
    d_q, d_k, d_v = [], jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32)
    for first, end in _blocks(q.shape[3]):
        here, seen = slice(first, end), slice(0, end)
        some_q, some_out = q[:, :, :, here], d_out[:, :, :, here]
        scores, slope = _scores(softcap, some_q, k[:, :, seen], packing, first, end)
        weights = jnp.exp(scores - top[:, :, :, here]) / total[:, :, :, here]
        # With weights w = softmax(s): ds = w * (dw - sum(w * dw)), the sum taken over the keys.
        d_weights = _against(some_out, v[:, :, seen])
        mean = jnp.einsum("bkrts,bkrts->bkrt", weights, d_weights)[..., None]
        d_scores = weights * (d_weights - mean) * slope
        if sinks is not None:
            # The same with dw = 0, since a sink has no value.
            share = jnp.exp(sinks - top[:, :, :, here]) / total[:, :, :, here]
            d_sinks -= jnp.sum(share * mean, axis=(0, 3, 4), keepdims=True)
        d_scores, weights = _tall(d_scores.astype(q.dtype)), _tall(weights.astype(q.dtype))
        to_q = jnp.matmul(d_scores, k[:, :, seen], preferred_element_type=jnp.float32)
        d_q.append(to_q.astype(q.dtype).reshape(some_q.shape))
        # Later blocks see these keys too, so their gradients add up over the blocks, in float32.
        d_k = d_k.at[:, :, seen].add(_back(d_scores, _tall(some_q)))
        d_v = d_v.at[:, :, seen].add(_back(weights, _tall(some_out)))
    # `packing` is made of integers, which have no gradient: None.
    return jnp.concatenate(d_q, axis=3), d_k.astype(k.dtype), d_v.astype(v.dtype), None, d_sinks


_attention.defvjp(_forward, _backward)


def block_size(time: int) -> int:
    """Queries of a row that attend at once."""
    # Every block is a copy of the code in the compiled program, hence the limit on their number.
    return min(time, max(BLOCK, -(-time // BLOCKS)))


def _blocks(time: int) -> list[tuple[int, int]]:
    """The first query and the end of every block."""
    size = block_size(time)
    return [(first, min(first + size, time)) for first in range(0, time, size)]


def _scores(
    softcap: float | None,
    q: Float[Array, "B K r t h"],
    k: Float[Array, "B K S h"],
    packing: Packing,
    first: int,
    end: int,
) -> tuple[Float[Array, "B K r t S"], Float[Array, "B K r t S"] | float]:
    """Masked scores, and their derivative by the product of query and key (1 without softcap)."""
    scores = _against(q, k)
    slope: Float[Array, "B K r t S"] | float = 1.0
    if softcap is not None:
        bent = jnp.tanh(scores / softcap)
        scores, slope = softcap * bent, 1.0 - bent * bent
    # The mask comes after the softcap, which would turn MASKED into -softcap.
    return jnp.where(packed_mask(packing, first, end)[:, None, None], scores, MASKED), slope


def _against(x: Float[Array, "B K r t h"], y: Float[Array, "B K S h"]) -> Float[Array, "B K r t S"]:
    """The products of every vector of x with every vector of y, in float32."""
    product = jnp.einsum("bknh,bksh->bkns", _tall(x), y, preferred_element_type=jnp.float32)
    return product.reshape(*x.shape[:-1], -1)


def _tall(x: Float[Array, "B K r t n"]) -> Float[Array, "B K rt n"]:
    """The heads that share a key head as one matrix: plain matrix products are the fastest."""
    return x.reshape(*x.shape[:2], -1, x.shape[-1])


def _back(x: Float[Array, "B K n S"], y: Float[Array, "B K n h"]) -> Float[Array, "B K S h"]:
    """x^T y in float32, as the transpose of y^T x, which a CPU computes more than twice as fast."""
    product = jnp.einsum("bknh,bkns->bkhs", y, x, preferred_element_type=jnp.float32)
    return jnp.swapaxes(product, 2, 3)
