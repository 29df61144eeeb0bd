"""Keys and values on the device: one prefix cache entry per prompt, one suffix per decoding row.

A prompt's keys and values are stored once, however many completions decode from it, and no decode
step copies or writes them. What a row has drawn itself is in its suffix cache.

The suffix cache is a ring buffer over the decode loop's own counter of steps: in each step all rows
write at the same position, so that a step is one in-place slice update, and a row's own tokens are
the last `length + 1` positions. So rows may begin and end at any step. Keys are stored rotated to
their absolute position, which makes their order in the ring irrelevant.

There are two layouts. `KV` is what XLA's matrix products read directly: with keys stored `[L, h]`,
or rows as `[P, s]`, XLA was seen to copy every suffix cache once or more per step. `JoinedKV` is
what the TPU kernel reads: a token is one row of memory, so that appending one writes one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from malt_jax.models.quantized import round_to_int8
from malt_jax.models.sharding import RULES, constrain, partition
from malt_jax.models.spec import ModelSpec
from malt_jax.sampling.memory import CacheShape


class KV(NamedTuple):
    """One layer's keys and values of `B` prefix cache entries or rows, as XLA multiplies them."""

    k: Float[Array, "B K h L"] | Int[Array, "B K h L"]
    v: Float[Array, "B K L h"] | Int[Array, "B K L h"]
    k_scale: Float[Array, "B K L"] | None = None  # the scales of an int8 cache
    v_scale: Float[Array, "B K L"] | None = None

    @staticmethod
    def of(k: Array, v: Array, k_scale: Array | None = None, v_scale: Array | None = None) -> KV:
        """From keys and values `[B K L h]`."""
        return KV(jnp.swapaxes(k, 2, 3), v, k_scale, v_scale)

    def apart(self) -> KV:
        return self

    @property
    def size(self) -> int:
        """`B`."""
        return self.v.shape[0]

    @property
    def capacity(self) -> int:
        """`L`."""
        return self.v.shape[-2]

    @property
    def token_axes(self) -> tuple[int, ...]:
        """Where `L` is in each array."""
        return 3, 2, 2, 2


class JoinedKV(NamedTuple):
    """The same, as the TPU kernel reads them: a token's key and its value in one row.

    A row of `2 h` numbers fills whole vectors of 128 lanes also where a head has 64.
    """

    kv: Float[Array, "B K L 2h"] | Int[Array, "B K L 2h"]
    k_scale: Float[Array, "B K L"] | None = None
    v_scale: Float[Array, "B K L"] | None = None

    @staticmethod
    def of(
        k: Array, v: Array, k_scale: Array | None = None, v_scale: Array | None = None
    ) -> JoinedKV:
        """From keys and values `[B K L h]`."""
        return JoinedKV(jnp.concatenate([k, v], axis=-1), k_scale, v_scale)

    def apart(self) -> KV:
        """For a matrix product of XLA; a copy, unless the compiler takes slices of operands."""
        k, v = jnp.split(self.kv, 2, axis=-1)
        return KV.of(k, v, self.k_scale, self.v_scale)

    @property
    def size(self) -> int:
        return self.kv.shape[0]

    @property
    def capacity(self) -> int:
        return self.kv.shape[-2]

    @property
    def token_axes(self) -> tuple[int, ...]:
        return 2, 2, 2


Cache = KV | JoinedKV


def empty_caches(
    spec: ModelSpec, shape: CacheShape, dtype: Any, layout: type[Cache] = KV
) -> tuple[list[Cache], list[Cache]]:
    """Prefix and suffix caches of zeros, with one element per layer."""
    make = partial(_zeros, spec, dtype, layout)
    layers = range(spec.num_layers)
    prefix = [make(shape.entries, shape.prefix_tokens) for _ in layers]
    suffix = [make(shape.rows, shape.new_tokens) for _ in layers]
    return constrain_caches(prefix), constrain_caches(suffix)


def _zeros(spec: ModelSpec, dtype: Any, layout: type[Cache], count: int, length: int) -> Cache:
    shape = (count, spec.kv_heads, length)
    kv = jnp.zeros((*shape, spec.head_dim), dtype)
    if dtype != jnp.int8:
        return layout.of(kv, kv)
    return layout.of(kv, kv, jnp.zeros(shape, jnp.float32), jnp.zeros(shape, jnp.float32))


def to_int8(x: Float[Array, "*b h"]) -> tuple[Int[Array, "*b h"], Float[Array, "*b"]]:
    """Keys or values in int8, and a scale per token and head."""
    values, scale = round_to_int8(x, -1)
    return values, jnp.squeeze(scale, -1)


def to_cache(k: Float[Array, "B T K h"], v: Float[Array, "B T K h"], like: Cache) -> Cache:
    """New keys and values in the layout and dtype of the cache `like`."""
    k, v = jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2)
    if like.k_scale is None:
        return like.of(k.astype(like[0].dtype), v.astype(like[0].dtype))
    (k, k_scale), (v, v_scale) = to_int8(k), to_int8(v)
    return like.of(k, v, k_scale, v_scale)


def append(
    suffix: Cache, k: Float[Array, "R 1 K h"], v: Float[Array, "R 1 K h"], cursor: Int[Array, ""]
) -> Cache:
    """Writes one token per row at the ring's position `cursor`."""

    def put(cache: Array, new: Array, axis: int) -> Array:
        return jax.lax.dynamic_update_slice_in_dim(cache, new, cursor, axis)

    return _update(put, suffix, to_cache(k, v, suffix))


def _update(put: Callable[[Array, Array, int], Array], cache: Cache, new: Cache) -> Cache:
    """A cache with each of its arrays updated by `put(array, new values, token axis)`."""
    arrays, structure = jax.tree.flatten(cache)
    return jax.tree.unflatten(structure, map(put, arrays, jax.tree.leaves(new), cache.token_axes))


def write_chunk(
    prefix: Cache,
    new: Cache,
    target: Int[Array, ""],
    start: Int[Array, ""],
    length: Int[Array, ""],
) -> Cache:
    """Writes `length` tokens at `start` of entry `target`, in place; none if that is no entry.

    `new`: keys and values from `to_cache`, without its axis `B`. Given one scatter of many chunks,
    the TPU compiler copies the whole cache, so a chunk is a slice update.
    """
    entries, capacity, time = prefix.size, prefix.capacity, new.capacity
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


def copy_entries(
    prefix: list[Cache], source: Int[Array, "N"], target: Int[Array, "N"]
) -> list[Cache]:
    """Copies entry `source` over entry `target`, pair by pair and in place.

    Targets of `P`, which come last, are padding. On a mesh the pairs are split as the entries are,
    and both entries of a pair are on its shard.
    """
    cache_axes, pair_axes = partitions(prefix, "batch", "kv_heads"), partitions(source, "batch")
    run = per_shard(_copy_on_shard, (cache_axes, pair_axes, pair_axes), cache_axes)
    return constrain_caches(run(prefix, source, target))


def _copy_on_shard(prefix: list[Cache], source: Array, target: Array) -> list[Cache]:
    entries = prefix[0].size
    source, target = local_entries(source, entries), local_entries(target, entries)
    count = jnp.sum(target < entries, dtype=jnp.int32)
    return jax.lax.fori_loop(0, count, partial(_copy_pair, source, target), prefix)


def _copy_pair(source: Array, target: Array, pair: Array, prefix: list[Cache]) -> list[Cache]:
    def copy(cache: Array) -> Array:
        new = jax.lax.dynamic_index_in_dim(cache, source[pair], 0)
        return jax.lax.dynamic_update_slice_in_dim(cache, new, target[pair], 0)

    return jax.tree.map(copy, prefix)


def resize(
    prefix: list[Cache] | None, suffix: list[Cache], entries: Int[Array, "P"], rows: Int[Array, "R"]
) -> tuple[list[Cache] | None, list[Cache]]:
    """The caches of some entries, or None if they stay as they are, and of some rows."""
    return None if prefix is None else _chosen(prefix, entries), _chosen(suffix, rows)


def _chosen(caches: list[Cache], numbers: Int[Array, "N"]) -> list[Cache]:
    """The caches of these entries or rows; on a mesh those of a shard stay on it."""
    cache_axes, number_axes = partitions(caches, "batch", "kv_heads"), partitions(numbers, "batch")
    run = per_shard(_choose_on_shard, (cache_axes, number_axes), cache_axes)
    return constrain_caches(run(caches, numbers))


def _choose_on_shard(caches: list[Cache], numbers: Array) -> list[Cache]:
    local = local_entries(numbers, caches[0].size)
    return jax.tree.map(lambda x: jnp.take(x, local, axis=0, mode="clip"), caches)


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
    if jax.sharding.get_abstract_mesh().size <= 1:  # 0: no mesh
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
