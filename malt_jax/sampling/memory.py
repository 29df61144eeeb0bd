"""How many prompts fit: bytes a slot takes, from the model and the shapes, against a budget."""

from __future__ import annotations

import os
import resource
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from malt_jax.errors import UserError
from malt_jax.models.spec import ModelSpec
from malt_jax.sampling.config import SamplerConfig

BEST_ROWS = {"cpu": 64}
"""Rows beyond which a platform gains little; elsewhere ACCELERATOR_ROWS."""
ACCELERATOR_ROWS = 512

SHARE = 0.8
"""Of a device's free memory, what caches may take; the rest is for what programs compute."""

LOGIT_COPIES = 4
"""Float32 copies of a row's logits alive at once in the draw: logits, weights, threshold search."""


@dataclass(frozen=True)
class Shapes:
    """Capacities of one run's caches."""

    slots: int
    width: int
    places: int
    """Prefix tokens a slot can hold."""
    ring: int
    """New tokens a row can hold."""


@dataclass(frozen=True)
class Budget:
    """What a slot takes on a device that holds it, and what a device may give to all of its."""

    bytes_per_slot: int
    allowed: int
    shards: int = 1
    """Parts of the mesh the slots are split over."""

    @property
    def slots(self) -> int:
        return self.allowed // self.bytes_per_slot * self.shards

    def need(self, slots: int) -> int:
        """Bytes on the device that holds most of `slots`."""
        return -(-slots // self.shards) * self.bytes_per_slot


def bucket(sizes: Sequence[int], need: int) -> int:
    """The smallest capacity that holds `need` tokens: one of `sizes`, or the last, doubled.

    Prompts grow with what models write, so a list that is too short must not end a run.
    """
    largest = sizes[-1]
    while largest < need:
        largest *= 2
    return next((size for size in sizes if need <= size), largest)


MIN_SLOTS = 4
"""Fewer are not worth a program of their own."""


def ladder(most: int, shards: int = 1) -> list[int]:
    """Numbers of slots there are programs for: `most`, halved down to a few, rising.

    A run begins at the rung its work fills, and goes down as its last completions end. Rungs are
    multiples of `shards` so that a mesh divides them.
    """
    rungs = [max(1, most // shards)]
    while rungs[-1] >= 2 * MIN_SLOTS / shards and rungs[-1] > 1:
        rungs.append(-(-rungs[-1] // 2))
    return [rung * shards for rung in reversed(rungs)]


def rungs(
    spec: ModelSpec,
    one: Shapes,
    dtype: Any,
    config: SamplerConfig,
    platform: str,
    *,
    streams: int = 1,
    shards: int = 1,
    head_parts: int = 1,
    free: int | None = None,
) -> tuple[list[Shapes], Budget]:
    """A stream's shapes, those of `ladder` for slots like `one`, and their memory's plan.

    The most slots are those asked for, or the platform's best number of rows on every shard, as
    far as they fit. Else as `budget`, whose UserError it raises too.
    """
    plan = budget(spec, one, dtype, config.memory_gb, shards, head_parts, free)
    best = BEST_ROWS.get(platform, ACCELERATOR_ROWS)
    wanted = config.slots or max(1, best // one.width) * shards * streams
    if config.slots and plan.slots < wanted:
        raise UserError(
            f"sampler.slots: {wanted} slots need {plan.need(wanted) / 2**30:.2f} GiB a device, "
            f"{plan.allowed / 2**30:.2f} are allowed; set at most {plan.slots}."
        )
    most = max(1, min(wanted, plan.slots) // streams)
    return [replace(one, slots=slots) for slots in ladder(most, shards)], plan


def stream_count(config: SamplerConfig, platform: str, on_mesh: bool) -> int:
    """Batches that may decode side by side."""
    # XLA runs a decode step's thin products on one core; a second stream keeps another busy.
    cores = os.cpu_count() if platform == "cpu" and not on_mesh else 1
    return config.streams or min(2, cores or 1)


def first_rung(rungs: Sequence[Shapes], completions: int) -> Shapes:
    """The shapes a run of so many completions begins with: the fewest rows they come close to."""
    fits = (shapes for shapes in rungs if completions <= 1.33 * shapes.slots * shapes.width)
    return next(fits, rungs[-1])


def slot_bytes(spec: ModelSpec, shapes: Shapes, dtype: Any) -> int:
    """Bytes of one slot: its prefix, its rows' suffixes and logits."""
    element = jnp.dtype(dtype).itemsize
    per_head = spec.head_dim * element + (4 if dtype == jnp.int8 else 0)
    token = 2 * spec.num_layers * spec.kv_heads * per_head
    logits = LOGIT_COPIES * 4 * spec.vocab
    return token * (shapes.places + shapes.width * shapes.ring) + shapes.width * logits


def budget(
    spec: ModelSpec,
    shapes: Shapes,
    dtype: Any,
    memory_gb: float,
    shards: int = 1,
    head_parts: int = 1,
    free: int | None = None,
) -> Budget:
    """The plan for slots of these capacities; the mesh splits slots in `shards`, heads in parts.

    `free`: bytes free on a device; default: those of this machine's.

    Raises UserError with the size that would fit when not even one slot does.
    """
    allowed = int(memory_gb * 2**30)
    if not allowed:
        allowed = int(SHARE * (free_bytes() if free is None else free))
    each = -(-slot_bytes(spec, shapes, dtype) // head_parts)
    if each > allowed:
        fixed = slot_bytes(spec, Shapes(1, shapes.width, 0, 0), dtype) / head_parts
        token = (each - fixed) / (shapes.places + shapes.width * shapes.ring)
        tokens = max(0, int((allowed - fixed) / token))
        raise UserError(
            f"sampler.memory_gb: one prompt of {shapes.places} tokens with {shapes.width} "
            f"completions of {shapes.ring} at a time takes {each / 2**30:.3f} GiB a device, and "
            f"{allowed / 2**30:.3f} are allowed, enough for {tokens} tokens of prompt and "
            "completions together; shorten max_new_tokens or the prompts, lower sampler.width, "
            "or set sampler.cache to int8."
        )
    return Budget(each, allowed, shards)


def free_bytes() -> int:
    """Free memory of a device, or of the host for a CPU."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def peak_bytes() -> int:
    """The most memory the first device had in use; for a CPU, this process's."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"]
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
