"""Keys and values on the device: one prefix cache entry per prompt, one suffix per decoding row.

A prompt's keys and values are stored once, however many completions decode from it, and no decode
step copies or writes them. What a row has drawn itself is in its suffix cache.

The suffix cache is a ring buffer over the decode loop's own counter of steps: in each step all rows
write at the same position, so that a step is one in-place slice update, and a row's own tokens are
the last `length + 1` positions. So rows may begin and end at any step. Keys are stored rotated to
their absolute position, which makes their order in the ring irrelevant.

The layouts are those that the matrix products read directly. With keys stored `[L, h]`, or rows as
`[P, s]`, XLA was seen to copy every suffix cache once or more per step.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from malt_jax.models.sharding import RULES, constrain, partition
from malt_jax.models.spec import ModelSpec
from malt_jax.sampling.int8 import to_int8
from malt_jax.sampling.memory import CacheShape


class KV(NamedTuple):
    """One layer's keys and values of `B` prefix cache entries or rows.

    Only this file and `attention` know the order of the axes, so that a kernel can have another.
    """

    k: Float[Array, "B K h L"] | Int[Array, "B K h L"]
    v: Float[Array, "B K L h"] | Int[Array, "B K L h"]
    k_scale: Float[Array, "B K L"] | None = None  # the scales of an int8 cache
    v_scale: Float[Array, "B K L"] | None = None


TOKEN_AXES = (3, 2, 2, 2)
"""Where `L` is in each array."""


def empty_caches(spec: ModelSpec, shape: CacheShape, dtype: Any) -> tuple[list[KV], list[KV]]:
    """Prefix and suffix caches of zeros, with one element per layer."""
    prefix = [
        _zeros(spec, shape.entries, shape.prefix_tokens, dtype) for _ in range(spec.num_layers)
    ]
    suffix = [_zeros(spec, shape.rows, shape.new_tokens, dtype) for _ in range(spec.num_layers)]
    return constrain_caches(prefix), constrain_caches(suffix)


def _zeros(spec: ModelSpec, count: int, length: int, dtype: Any) -> KV:
    shape, h = (count, spec.kv_heads, length), spec.head_dim
    k, v = jnp.zeros((*shape[:2], h, length), dtype), jnp.zeros((*shape, h), dtype)
    if dtype != jnp.int8:
        return KV(k, v)
    return KV(k, v, jnp.zeros(shape, jnp.float32), jnp.zeros(shape, jnp.float32))


def to_cache(k: Float[Array, "B T K h"], v: Float[Array, "B T K h"], like: KV) -> KV:
    """New keys and values in the layout and dtype of the cache `like`."""
    k, v = jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2)
    if like.k_scale is None:
        return KV(jnp.swapaxes(k.astype(like.k.dtype), 2, 3), v.astype(like.v.dtype))
    (k, k_scale), (v, v_scale) = to_int8(k, -1), to_int8(v, -1)
    return KV(jnp.swapaxes(k, 2, 3), v, k_scale, v_scale)


def append(
    suffix: KV, k: Float[Array, "R 1 K h"], v: Float[Array, "R 1 K h"], cursor: Int[Array, ""]
) -> KV:
    """Writes one token per row at the ring's position `cursor`."""

    def put(cache: Array, new: Array, axis: int) -> Array:
        return jax.lax.dynamic_update_slice_in_dim(cache, new, cursor, axis)

    return _update(put, suffix, to_cache(k, v, suffix))


def _update(put: Callable[[Array, Array, int], Array], cache: KV, new: KV) -> KV:
    """A cache with each of its arrays updated by `put(array, new values, token axis)`."""
    arrays, structure = jax.tree.flatten(cache)
    return jax.tree.unflatten(structure, map(put, arrays, jax.tree.leaves(new), TOKEN_AXES))


def write_chunk(
    prefix: KV, new: KV, target: Int[Array, ""], start: Int[Array, ""], length: Int[Array, ""]
) -> KV:
    """Writes `length` tokens at `start` of entry `target`, in place; none if that is no entry.

    `new`: keys and values from `to_cache`, without its axis `B`. Given one scatter of many chunks,
    the TPU compiler copies the whole cache, so a chunk is a slice update.
    """
    entries, _, capacity, _ = prefix.v.shape
    time = new.v.shape[1]
    # dynamic_slice clamps a start that would run past the end, so the window begins `shift`
    # positions early; the new tokens are rolled by `shift`, and the mask keeps the rest.
    at = jnp.minimum(start, capacity - time)
    shift = start - at
    step = jnp.arange(time, dtype=jnp.int32)
    written = (step >= shift) & (step < shift + length) & (target < entries)

    def put(cache: Array, new: Array, axis: int) -> Array:
        where = [jnp.int32(0)] * cache.ndim
        where[0], where[axis] = target, at
        size = (1, *cache.shape[1:axis], time, *cache.shape[axis + 1 :])
        old = jax.lax.dynamic_slice(cache, where, size)
        mask = written.reshape([time if i == axis else 1 for i in range(cache.ndim)])
        new = jnp.where(mask, jnp.roll(new[None], shift, axis), old)
        return jax.lax.dynamic_update_slice(cache, new, where)

    return _update(put, prefix, new)


def copy_entries(prefix: list[KV], source: Int[Array, "N"], target: Int[Array, "N"]) -> list[KV]:
    """Copies entry `source` over entry `target`, pair by pair and in place.

    Targets of `P`, which come last, are padding. On a mesh the pairs are split as the entries are,
    and both entries of a pair are on its shard.
    """
    cache_axes, pair_axes = partitions(prefix, "batch", "kv_heads"), partitions(source, "batch")
    run = per_shard(_copy_on_shard, (cache_axes, pair_axes, pair_axes), cache_axes)
    return constrain_caches(run(prefix, source, target))


def _copy_on_shard(prefix: list[KV], source: Array, target: Array) -> list[KV]:
    entries = prefix[0].v.shape[0]
    source, target = local_entries(source, entries), local_entries(target, entries)
    count = jnp.sum(target < entries, dtype=jnp.int32)
    return jax.lax.fori_loop(0, count, partial(_copy_pair, source, target), prefix)


def _copy_pair(source: Array, target: Array, pair: Array, prefix: list[KV]) -> list[KV]:
    def copy(cache: Array) -> Array:
        new = jax.lax.dynamic_index_in_dim(cache, source[pair], 0)
        return jax.lax.dynamic_update_slice_in_dim(cache, new, target[pair], 0)

    return jax.tree.map(copy, prefix)


def shrink(
    prefix: list[KV] | None, suffix: list[KV], entries: Int[Array, "P"], rows: Int[Array, "R"]
) -> tuple[list[KV] | None, list[KV]]:
    """The caches of some entries, or None if all are kept, and of some rows."""
    prefix = jax.tree.map(lambda x: jnp.take(x, entries, axis=0, mode="clip"), prefix)
    suffix = jax.tree.map(lambda x: jnp.take(x, rows, axis=0, mode="clip"), suffix)
    return constrain_caches(prefix), constrain_caches(suffix)


# On a mesh, entries and rows are split over the data axes and key heads over the tensor axis. The
# host sends a prompt's chunks and rows to the shard that holds its entry, so what is done to an
# entry needs no communication, however many shards there are. Left to the partitioner, every shard
# would gather the prefixes of all chunks.


def constrain_caches(caches: Any) -> Any:
    """Pins the layout of caches on a mesh."""
    return jax.tree.map(lambda x: constrain(x, "batch", "kv_heads", *[None] * (x.ndim - 2)), caches)


def partitions(tree: Any, *axes: str | None) -> Any:
    """The partition of each array by its leading logical axes, as `per_shard` takes it."""
    mesh = jax.sharding.get_abstract_mesh()
    padded = lambda x: (axes + (None,) * x.ndim)[: x.ndim]  # noqa: E731
    return jax.tree.map(lambda x: partition(padded(x), x.shape, mesh), tree)


def per_shard(function: Callable, inputs: Any, outputs: Any) -> Callable:
    """`function` on every shard of the mesh, each with its own part of the arrays.

    `inputs`, `outputs`: partitions of its arguments and results.
    """
    if not _shard_axes():
        return function
    return jax.shard_map(function, in_specs=inputs, out_specs=outputs, check_vma=False)


def local_entries(numbers: Int[Array, "N"], entries: int) -> Int[Array, "N"]:
    """Entry numbers counted within this shard; entries of other shards become `entries`.

    `entries`: how many entries this shard has.
    """
    if not (names := _shard_axes()):
        return numbers
    local = numbers - entries * jax.lax.axis_index(names)
    return jnp.where((local >= 0) & (local < entries), local, entries)


def _shard_axes() -> tuple[str, ...]:
    mesh = jax.sharding.get_abstract_mesh()
    return tuple(name for name in RULES["batch"] if mesh.shape.get(name, 1) > 1)
