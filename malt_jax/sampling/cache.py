"""Keys and values: one read-only prefix a slot, and the suffixes of the rows that decode from it.

The prefix of a prompt is stored once, however many completions decode from it, and no step copies
it: attention forms the logits against prefix and suffix apart and puts them through one softmax.

A suffix is a ring over the decode loop's own clock: at each step all rows write at the same place,
so a step is one in-place slice update, and a row's own tokens are the last `length + 1` places.
Rows may begin and end at any step. Keys are stored rotated to their absolute position, so the order
in the ring does not matter.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from malt_jax.models.attention import MASKED
from malt_jax.models.spec import ModelSpec


class KV(NamedTuple):
    """One layer's keys and values, `[..., K, places, h]`, with int8's scales `[..., K, places]`."""

    k: Array
    v: Array
    k_scale: Array | None = None
    v_scale: Array | None = None


def empty(spec: ModelSpec, lead: tuple[int, ...], places: int, dtype: Any) -> list[KV]:
    """A cache of zeros, one entry a layer: `lead` is (S,) for prefixes, (S, w) for suffixes."""

    def layer() -> KV:
        shape = (*lead, spec.kv_heads, places)
        if dtype != jnp.int8:
            return KV(*(jnp.zeros((*shape, spec.head_dim), dtype) for _ in range(2)))
        values = (jnp.zeros((*shape, spec.head_dim), dtype) for _ in range(2))
        return KV(*values, *(jnp.zeros(shape, jnp.float32) for _ in range(2)))

    return [layer() for _ in range(spec.num_layers)]


def quantise(x: Float[Array, "*b h"]) -> tuple[Int[Array, "*b h"], Float[Array, "*b"]]:
    """Symmetric int8 with one scale a vector: the largest magnitude becomes 127."""
    x = x.astype(jnp.float32)
    scale = jnp.maximum(jnp.max(jnp.abs(x), axis=-1), 1e-30) / 127.0
    return jnp.round(x / scale[..., None]).astype(jnp.int8), scale


def stored(k: Float[Array, "*b K n h"], v: Float[Array, "*b K n h"], like: KV) -> KV:
    """New keys and values in the form the cache keeps them in."""
    if like.k_scale is None:
        return KV(k.astype(like.k.dtype), v.astype(like.v.dtype))
    (k, k_scale), (v, v_scale) = quantise(k), quantise(v)
    return KV(k, v, k_scale, v_scale)


def append(suffix: KV, k: Float[Array, "S w K h"], v: Float[Array, "S w K h"], clock: Array) -> KV:
    """Write one token a row at the ring's place `clock`."""
    new = stored(k[:, :, :, None], v[:, :, :, None], suffix)
    return jax.tree.map(
        lambda ring, x: jax.lax.dynamic_update_slice_in_dim(ring, x, clock, axis=3), suffix, new
    )


def decode_attention(
    q: Float[Array, "S w H h"],
    prefix: KV,
    suffix: KV,
    prefix_mask: Bool[Array, "S w P"],
    suffix_mask: Bool[Array, "S w N"],
    softcap: float | None,
) -> Float[Array, "S w H h"]:
    """One token a row against its slot's shared prefix and its own suffix; `q` comes scaled."""
    slots, width, heads, head_dim = q.shape
    groups = prefix.k.shape[1]
    q = q.reshape(slots, width, groups, heads // groups, head_dim)
    shared = _scores("swkrh,skph->skwrp", q, prefix.k, prefix.k_scale, "skp->sk11p")
    own = _scores("swkrh,swknh->skwrn", q, suffix.k, suffix.k_scale, "swkn->skw1n")
    if softcap is not None:
        shared, own = softcap * jnp.tanh(shared / softcap), softcap * jnp.tanh(own / softcap)
    shared = jnp.where(prefix_mask[:, None, :, None], shared, MASKED)
    own = jnp.where(suffix_mask[:, None, :, None], own, MASKED)
    # One softmax over both blocks without joining them. A row always sees its own last token, so
    # the maximum is a real score and masked places weigh exactly 0.
    top = jnp.maximum(
        jnp.max(shared, axis=-1, keepdims=True), jnp.max(own, axis=-1, keepdims=True)
    )
    shared, own = jnp.exp(shared - top), jnp.exp(own - top)
    total = jnp.sum(shared, axis=-1, keepdims=True) + jnp.sum(own, axis=-1, keepdims=True)
    out = _mix("skwrp,skph->swkrh", shared / total, prefix.v, prefix.v_scale, "skp->sk11p", q.dtype)
    out += _mix("skwrn,swknh->swkrh", own / total, suffix.v, suffix.v_scale, "swkn->skw1n", q.dtype)
    return out.reshape(slots, width, heads, head_dim)


def _scores(sum_: str, q: Array, k: Array, scale: Array | None, layout: str) -> Array:
    scores = jnp.einsum(sum_, q, k.astype(q.dtype), preferred_element_type=jnp.float32)
    return scores if scale is None else scores * _laid_out(scale, layout)


def _mix(
    sum_: str, weights: Array, v: Array, scale: Array | None, layout: str, dtype: Any
) -> Array:
    if scale is not None:
        weights = weights * _laid_out(scale, layout)
    return jnp.einsum(sum_, weights.astype(dtype), v.astype(dtype))


def _laid_out(scale: Array, layout: str) -> Array:
    """Transpose a scale and give it the unit axes written as `1`: `swkn->skw1n`."""
    source, target = layout.split("->")
    moved = jnp.transpose(scale, [source.index(axis) for axis in target if axis != "1"])
    units = [i for i, axis in enumerate(target) if axis == "1"]
    return jnp.expand_dims(moved, units)


def extend_attention(
    q: Float[Array, "B T H h"],
    k: Float[Array, "B T K h"],
    v: Float[Array, "B T K h"],
    block: KV,
    start: Int[Array, "B"],
    length: Int[Array, "B"],
    window: Int[Array, ""] | int | None,
    softcap: float | None,
) -> tuple[Float[Array, "B T H h"], KV]:
    """`length` new tokens after the first `start` of a prefix block; returns the block with them.

    What the block holds from `start` on is not read.
    """
    batch, time, heads, head_dim = q.shape
    groups, places = block.k.shape[1], block.k.shape[2]
    new = stored(jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2), block)
    place = jnp.arange(places, dtype=jnp.int32)
    offset = place[None, :] - start[:, None]
    fresh = (offset >= 0) & (offset < length[:, None])
    source = jnp.clip(offset, 0, time - 1)

    def merge(old: Array, x: Array) -> Array:
        extra = (None,) * (x.ndim - 3)
        x = jnp.take_along_axis(x, source[(slice(None), None, slice(None), *extra)], axis=2)
        return jnp.where(fresh[(slice(None), None, slice(None), *extra)], x, old)

    block = jax.tree.map(merge, block, new)
    position = start[:, None] + jnp.arange(time, dtype=jnp.int32)[None, :]
    distance = position[:, :, None] - place[None, None, :]
    mask = distance >= 0 if window is None else (distance >= 0) & (distance < window)
    q = q.reshape(batch, time, groups, heads // groups, head_dim)
    scores = _scores("btkrh,bkph->bkrtp", q, block.k, block.k_scale, "bkp->bk11p")
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    scores = jnp.where(mask[:, None, None], scores, MASKED)
    weights = jax.nn.softmax(scores, axis=-1)
    out = _mix("bkrtp,bkph->btkrh", weights, block.v, block.v_scale, "bkp->bk11p", q.dtype)
    return out.reshape(batch, time, heads, head_dim), block
