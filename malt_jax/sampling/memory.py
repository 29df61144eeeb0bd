"""How many rows and prompts fit: the bytes that each takes, against a device's memory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from malt_jax.config.sampler import SamplerConfig
from malt_jax.errors import UserError
from malt_jax.memory import free_memory, host_memory
from malt_jax.models.sharding import AnyMesh, parts_of
from malt_jax.models.spec import ModelSpec

BEST_ROWS = {"cpu": 64}
"""Rows per shard beyond which a platform gains little; elsewhere ACCELERATOR_ROWS."""
ACCELERATOR_ROWS = 512

CACHE_SHARE = 0.8
"""Share of a device's free memory for caches; the rest is for what programs compute."""

CPU_CACHES = 2 << 30
"""Bytes of all caches together on a CPU, at most, unless `sampler.memory_gb` says otherwise.

There a batch of twice as many rows is a few per cent faster, but its caches are as large as the
weights several times over, and on a laptop the memory is wanted for other things."""

LOGIT_COPIES = 4
"""Float32 copies of a row's logits alive at once: logits, weights, and the threshold search."""

GROUP_BATCHES = 8
"""A group of prompts of one length has programs of its own if it fills so many batches of the
platform's best size; a smaller group joins the next longer one, because compiling takes time too.
The number is an estimate."""

MAX_SIBLINGS = 4
"""Rows that read one prefix cache entry at a time, at most, where XLA computes attention and
`sampler.width` does not say otherwise.

XLA multiplies an entry's keys with queries for all its places, of rows or not. With four, a common
branching factor wastes none; with more, places stay empty while the last siblings of a prompt
decode, and they cost as much as rows do. A prompt with more siblings has several entries."""

MIN_ROWS = 4
"""A batch of fewer rows is not worth a program of its own."""


@dataclass(frozen=True)
class CacheShape:
    """Capacities of one run's caches."""

    rows: int  # completions that decode at a time
    entries: int  # prompts held at a time
    siblings: int  # rows that may read one entry at a time
    prefix_tokens: int  # prompt tokens that an entry holds
    new_tokens: int  # generated tokens that a row holds


@dataclass(frozen=True)
class Devices:
    """The devices that caches are planned for."""

    platform: str
    shards: int = 1  # parts of the mesh that rows and entries are split over
    kv_shards: int = 1  # parts of the mesh that key heads are split over
    streams: int = 1  # batches that decode side by side and share the memory
    free_bytes: int | None = None  # free memory of one device; None: as found on this machine


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes on the device that holds a row or an entry, and what it may give to all of them."""

    row_bytes: int
    entry_bytes: int
    siblings: int
    allowed: int
    shards: int = 1

    @property
    def most_rows(self) -> int:
        """The most rows, over all shards, that fit with the entries that keep them busy."""
        entries_per_row = 2 / (self.siblings + 1)
        per_shard = int(self.allowed / (self.row_bytes + entries_per_row * self.entry_bytes))
        counts = range(per_shard * self.shards, 0, -self.shards)
        return next((rows for rows in counts if self.need(rows) <= self.allowed), 0)

    def need(self, rows: int) -> int:
        """Bytes on the device that holds most of `rows` and of their entries."""
        per_shard = -(-rows // self.shards)
        return self.held(per_shard, entries_for(per_shard, self.siblings))

    def held(self, rows: int, entries: int) -> int:
        return rows * self.row_bytes + entries * self.entry_bytes


def entries_for(rows: int, siblings: int) -> int:
    """Prefix cache entries that keep `rows` busy.

    An entry's completions end one after the other, so on average (siblings + 1) / 2 are at work.
    """
    return -(-2 * rows // (siblings + 1))


def best_rows(platform: str) -> int:
    """Rows per shard beyond which the platform gains little."""
    return BEST_ROWS.get(platform, ACCELERATOR_ROWS)


def rows_wanted(config: SamplerConfig, platform: str, shards: int, streams: int) -> int:
    """Rows of all streams on all shards, if their caches fit."""
    return config.rows or best_rows(platform) * shards * streams


def least_group(platform: str) -> int:
    """Completions that are worth programs of their own."""
    return GROUP_BATCHES * best_rows(platform)


def siblings_per_entry(completions: int, limit: int) -> int:
    """How many of a prompt's completions share an entry: all, or equal parts of at most `limit`."""
    return -(-completions // -(-completions // (limit or MAX_SIBLINGS)))


def bucket(sizes: Sequence[int], need: int, block: int = 1) -> int:
    """The smallest capacity for `need` tokens: one of `sizes`, or the last one's doubles.

    Prompts grow with what models write, so a list that is too short must not end a run. A capacity
    is rounded up to whole blocks.
    """
    largest = sizes[-1]
    while largest < need:
        largest *= 2
    return block * -(-next((size for size in sizes if need <= size), largest) // block)


def row_counts(most: int, shards: int = 1) -> list[int]:
    """Numbers of rows that programs are compiled for: `most`, halved down to a few.

    They rise. A run begins at the number that its work fills and goes down as its last completions
    end. All are multiples of `shards`, so that a mesh divides them.
    """
    per_shard = [max(1, most // shards)]
    while per_shard[-1] >= 2 * MIN_ROWS / shards and per_shard[-1] > 1:
        per_shard.append(-(-per_shard[-1] // 2))
    return [count * shards for count in reversed(per_shard)]


def plan_shapes(
    spec: ModelSpec, one: CacheShape, dtype: Any, config: SamplerConfig, devices: Devices
) -> tuple[list[CacheShape], MemoryPlan]:
    """The cache shapes of one stream, fewest rows first, and the memory plan.

    `one`: the capacities of an entry and a row. The most rows are those of `sampler.rows`, or the
    platform's best number on every shard, as far as they fit: the caches of later turns, whose
    prompts are longer, may have room for fewer. Raises UserError if a single row does not fit.
    """
    plan = plan_memory(spec, one, dtype, config.memory_gb, devices)
    shards, streams = devices.shards, devices.streams
    wanted = rows_wanted(config, devices.platform, shards, streams)
    per_shard = max(1, min(wanted, plan.most_rows) // streams // shards)
    return cache_shapes(one, per_shard, shards), plan


def cache_shapes(one: CacheShape, per_shard: int, shards: int) -> list[CacheShape]:
    """The shapes of up to `per_shard` rows on each shard, fewest rows first.

    With fewer rows only the last completions of their prompts are left, so that every row may need
    an entry of its own. `one`: see `plan_shapes`.
    """
    entries = entries_for(per_shard, one.siblings) * shards
    counts = row_counts(per_shard * shards, shards)
    return [replace(one, rows=rows, entries=min(rows, entries)) for rows in counts]


def stream_count(config: SamplerConfig, platform: str, on_mesh: bool) -> int:
    """Batches that may decode side by side."""
    # XLA runs a decode step's thin products on one core; a second stream keeps another busy.
    cores = os.cpu_count() if platform == "cpu" and not on_mesh else 1
    return config.streams or min(2, cores or 1)


def first_shape(shapes: Sequence[CacheShape], completions: int) -> CacheShape:
    """The shape in which a run begins: the fewest rows that its completions come close to."""
    fits = (shape for shape in shapes if completions <= 1.33 * shape.rows)
    return next(fits, shapes[-1])


def cache_dtype(config: SamplerConfig, dtype: Any, platform: str) -> Any:
    """Dtype of the caches of a model that computes in `dtype`."""
    if config.cache == "int8":
        return jnp.dtype(jnp.int8)
    # A CPU computes attention in float32, and would convert whole caches in every step.
    return jnp.dtype(jnp.float32 if platform == "cpu" else dtype)


def kv_shards(spec: ModelSpec, mesh: AnyMesh | None) -> int:
    """Parts of the mesh that key heads are split over.

    Heads that the mesh does not divide stay whole on each device (`models.sharding.partition`).
    """
    return parts_of(mesh, "kv_heads", spec.kv_heads)


def token_bytes(spec: ModelSpec, dtype: Any) -> int:
    """Bytes of one token's keys and values."""
    element = jnp.dtype(dtype).itemsize
    per_head = spec.head_dim * element + (4 if dtype == jnp.int8 else 0)
    return 2 * spec.num_layers * spec.kv_heads * per_head


def plan_memory(
    spec: ModelSpec, shape: CacheShape, dtype: Any, memory_gb: float, devices: Devices
) -> MemoryPlan:
    """Bytes of one row, which has a suffix and logits, and of one entry of these capacities.

    Raises UserError with the size that would fit when not even one row does.
    """
    allowed = int(memory_gb * 2**30)
    if not memory_gb:
        free = free_bytes() if devices.free_bytes is None else devices.free_bytes
        allowed = int(CACHE_SHARE * free)
        if devices.platform == "cpu":
            allowed = min(allowed, CPU_CACHES)
    kv_shards = devices.kv_shards
    token, logits = token_bytes(spec, dtype), LOGIT_COPIES * 4 * spec.vocab
    row = -(-(token * shape.new_tokens + logits) // kv_shards)
    entry = -(-token * shape.prefix_tokens // kv_shards)
    plan = MemoryPlan(row, entry, shape.siblings, allowed, devices.shards)
    if plan.held(1, 1) > allowed:
        tokens = max(0, int((allowed - logits / kv_shards) / (token / kv_shards)))
        smaller = "" if dtype == jnp.int8 else ", or set sampler.cache to int8"
        raise UserError(
            f"sampler.memory_gb: one prompt of {shape.prefix_tokens} tokens with a completion of "
            f"{shape.new_tokens} takes {plan.held(1, 1) / 2**20:,.1f} MiB per device, and "
            f"{allowed / 2**20:,.1f} are allowed, enough for {tokens} tokens of both together; "
            f"raise sampler.memory_gb, shorten max_new_tokens or the prompts{smaller}."
        )
    return plan


def free_bytes() -> int:
    """Free memory of a device, or of the host for a CPU; of several processes, the least."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        free = stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    else:
        known = free_memory()
        free = host_memory() if known is None else known
    if jax.process_count() > 1:
        from jax.experimental.multihost_utils import process_allgather

        # All must choose the same shapes. In MiB, since an int32 is what is gathered.
        free = int(process_allgather(np.int32(free >> 20)).min()) << 20
    return free
