"""Attention over the caches: one interface for decode steps, and the attention of prefill.

A decode step never joins a prefix with a suffix: the scores against both are computed separately
and go through one softmax. Rows are not tied to prefix cache entries. The group index collects the
rows that read the same entry, so that their products with it are one, and each entry is read once
per step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from malt_jax.models.attention import MASKED, LayerAttention
from malt_jax.models.matmul import small_products
from malt_jax.sampling.cache import Cache, local_entries, to_cache, write_chunk


class GroupIndex(NamedTuple):
    """Rows grouped by the prefix cache entry that they read: an entry has `s` places for rows."""

    row: Int[Array, "P s"]  # the row in each place, or R if it is empty
    place: Int[Array, "R"]  # each row's place, counted through all entries; P * s for an idle row


def group_rows(entry: Int[Array, "R"], entries: int, siblings: int) -> GroupIndex:
    """Gives every row a place at its entry, in the rows' order; idle rows have entry `entries`."""
    rows = entry.shape[0]
    # The R x R comparison counts the earlier rows of the same entry. Idle rows get the place after
    # the last one, which is out of range, so that mode="drop" discards them.
    earlier = (entry[:, None] == entry[None, :]) & jnp.tri(rows, k=-1, dtype=bool)
    place = entry * siblings + jnp.sum(earlier, axis=1, dtype=jnp.int32)
    place = jnp.where(entry < entries, place, entries * siblings)
    row = jnp.full(entries * siblings, rows, jnp.int32)
    row = row.at[place].set(jnp.arange(rows, dtype=jnp.int32), mode="drop")
    return GroupIndex(row.reshape(entries, siblings), place)


class Extent(NamedTuple):
    """Which part of the caches each row reads in one decode step."""

    entry: Int[Any, "R"]  # its prefix cache entry, or P for an idle row
    prefix: Int[Any, "R"]  # it reads this many tokens of the entry, as all of its rows do
    suffix: Int[Any, "R"]  # it reads the ring's position `cursor` and this many before it
    cursor: Int[Any, ""]


DecodeAttention = Callable[[Array, Cache, Cache, GroupIndex, Extent, LayerAttention], Array]
"""Attention of one decode step on one shard: one query per row.

(q [R 1 H h], prefix, suffix, groups, extent, layer) -> out [R 1 H h]. Queries come scaled, and the
suffix holds this step's token. What comes out for idle rows means nothing.
"""


def xla_decode_attention(
    q: Float[Array, "R 1 H h"],
    prefix: Cache,
    suffix: Cache,
    groups: GroupIndex,
    extent: Extent,
    layer: LayerAttention,
) -> Float[Array, "R 1 H h"]:
    """Plain matrix products over whole caches, filled or not; their masks leave out the rest."""
    prefix, suffix = prefix.apart(), suffix.apart()
    rows, _, heads, head_dim = q.shape
    kv_heads, capacity, ring = prefix.k.shape[1], prefix.capacity, suffix.capacity
    q = q.reshape(rows, kv_heads, heads // kv_heads, head_dim)

    # 1. Masks: what a row may read of its entry [P, s, L], and of its ring [R, L], where a
    #    position's age is the number of steps since it was written.
    position = jnp.arange(capacity, dtype=jnp.int32)[None, None]
    readable = jnp.where(groups.row < rows, _of_places(extent.prefix, groups), 0)
    in_prefix = position < readable[..., None]
    age = (extent.cursor - jnp.arange(ring, dtype=jnp.int32)[None]) % ring
    in_suffix = age <= extent.suffix[:, None]
    if layer.window is not None:
        query = _of_places(extent.prefix + extent.suffix, groups)
        in_prefix &= query[..., None] - position < layer.window
        in_suffix &= age < layer.window

    # 2. Scores against the prefix, all rows of an entry in one product, and against the suffix.
    shared = _scores(_by_entry(q, groups), prefix.k, prefix.k_scale, layer.softcap)
    mask = jnp.repeat(in_prefix, heads // kv_heads, axis=1)[:, None]
    shared = jnp.where(mask, shared, MASKED)
    own = _scores(q, suffix.k, suffix.k_scale, layer.softcap)
    own = jnp.where(in_suffix[:, None, None], own, MASKED)

    # 3. One softmax over both without joining them: each is summed below its own maximum, then
    #    brought to the common one. A row always sees its own last token, so that the common maximum
    #    is a real score, and a prefix that is masked whole weighs exactly 0.
    shared_max, own_max = jnp.max(shared, axis=-1), jnp.max(own, axis=-1)
    shared, own = jnp.exp(shared - shared_max[..., None]), jnp.exp(own - own_max[..., None])
    mixed = _by_row(_mix(shared, prefix.v, prefix.v_scale, q.dtype), groups)
    shared_max, total = (_by_row(x, groups) for x in (shared_max, jnp.sum(shared, axis=-1)))
    top = jnp.maximum(shared_max, own_max)
    sinks = _sinks(layer, kv_heads)
    top = top if sinks is None else jnp.maximum(top, sinks)
    of_shared, of_own = jnp.exp(shared_max - top), jnp.exp(own_max - top)
    total = total * of_shared + jnp.sum(own, axis=-1) * of_own
    total = total if sinks is None else total + jnp.exp(sinks - top)
    own_mixed = _mix(own, suffix.v, suffix.v_scale, q.dtype)
    out = mixed * of_shared[..., None] + own_mixed * of_own[..., None]
    return (out / total[..., None]).astype(q.dtype).reshape(rows, 1, heads, head_dim)


def _sinks(layer: LayerAttention, kv_heads: int) -> Float[Array, "1 K g"] | None:
    """The sinks of the query heads of each key head."""
    if layer.sinks is None:
        return None
    return layer.sinks.astype(jnp.float32).reshape(1, kv_heads, -1)


def _of_places(x: Array, groups: GroupIndex) -> Array:
    """The row's element of `x` at each place; an empty place has the last row's, read by none."""
    return jnp.take(x, groups.row, axis=0, mode="clip")


def _by_entry(x: Float[Array, "R K g *h"], groups: GroupIndex) -> Float[Array, "P K sg *h"]:
    entries, siblings = groups.row.shape
    x = _of_places(x, groups).swapaxes(1, 2)
    return x.reshape(entries, x.shape[1], siblings * x.shape[3], *x.shape[4:])


def _by_row(x: Float[Array, "P K sg *h"], groups: GroupIndex) -> Float[Array, "R K g *h"]:
    entries, siblings = groups.row.shape
    x = x.reshape(entries, x.shape[1], siblings, -1, *x.shape[3:]).swapaxes(1, 2)
    x = x.reshape(entries * siblings, *x.shape[2:])
    return jnp.take(x, groups.place, axis=0, mode="clip")


def _scores(
    q: Float[Array, "B K t h"], k: Array, scale: Array | None, softcap: float | None
) -> Float[Array, "B K t L"]:
    """Soft-capped logits in float32."""
    scores = small_products("bkth,bkhl->bktl", q, k)
    if scale is not None:
        scores = scores * scale[:, :, None]
    return scores if softcap is None else softcap * jnp.tanh(scores / softcap)


def _mix(
    weights: Float[Array, "B K t L"], v: Array, scale: Array | None, dtype: Any
) -> Float[Array, "B K t h"]:
    """The weighted sum of values, accumulated in float32."""
    if scale is not None:
        weights = weights * scale[:, :, None]
    return small_products("bktl,bklh->bkth", weights.astype(dtype), v)


class Chunks(NamedTuple):
    """Where the chunks of a prefill call are written."""

    target: Int[Any, "B"]  # the prefix cache entry, or P for padding
    start: Int[Any, "B"]  # the position of the chunk's first token
    length: Int[Any, "B"]  # tokens, without padding


def prefill_attention(
    q: Float[Array, "B T H h"],
    k: Float[Array, "B T K h"],
    v: Float[Array, "B T K h"],
    prefix: Cache,
    chunks: Chunks,
    layer: LayerAttention,
) -> tuple[Float[Array, "B T H h"], Cache]:
    """Writes chunks of prompts on one shard and lets their queries see all that comes before.

    Chunk after chunk is written and then attends to its whole entry. So chunks of one prompt may
    be in one call, in their order, no entry is copied, and scores exist for one chunk at a time.
    What an entry holds beyond a chunk's own tokens is not read.
    """
    batch, time, heads, head_dim = q.shape
    entries, kv_heads, capacity = prefix.size, k.shape[2], prefix.capacity
    # [B, T, H, h] -> [B, K, T * g, h]: the query heads of a key head share a product.
    q = q.reshape(batch, time, kv_heads, -1, head_dim).swapaxes(1, 2)
    q = q.reshape(batch, kv_heads, -1, head_dim)
    new = to_cache(k[:, :capacity], v[:, :capacity], prefix)
    sinks = _sinks(layer, kv_heads)
    if sinks is not None:  # of the query heads, and so of every token's
        sinks = jnp.tile(sinks, (1, 1, time))[..., None]
    chunks = chunks._replace(target=local_entries(chunks.target, entries))

    def attend(prefix: Cache, chunk: tuple[Array, Cache, Chunks]) -> tuple[Cache, Array]:
        q, new, (target, start, length) = chunk
        prefix = write_chunk(prefix, new, target, start, length)
        entry = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, target, 0), prefix).apart()
        position = start + jnp.arange(time, dtype=jnp.int32)
        distance = position[:, None] - jnp.arange(capacity, dtype=jnp.int32)[None, :]
        mask = distance >= 0
        if layer.window is not None:
            mask &= distance < layer.window
        mask = jnp.repeat(mask, heads // kv_heads, axis=0)[None, None]
        scores = _scores(q[None], entry.k, entry.k_scale, layer.softcap)
        scores = jnp.where(mask, scores, MASKED)
        top = jnp.max(scores, axis=-1, keepdims=True)
        top = top if sinks is None else jnp.maximum(top, sinks)
        weights = jnp.exp(scores - top)
        total = jnp.sum(weights, axis=-1)
        total = total if sinks is None else total + jnp.exp(sinks - top)[..., 0]
        out = _mix(weights, entry.v, entry.v_scale, q.dtype) / total[..., None]
        return prefix, out[0].astype(q.dtype)

    prefix, out = jax.lax.scan(attend, prefix, (q, new, chunks))
    out = out.reshape(batch, kv_heads, time, -1, head_dim).swapaxes(1, 2)
    return out.reshape(batch, time, heads, head_dim), prefix
