"""How many prompts fit: bytes a slot takes, from the model and the shapes, against a budget."""

from __future__ import annotations

import os
import resource
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from malt_jax.config.sampler import SamplerConfig
from malt_jax.errors import UserError
from malt_jax.models.spec import ModelSpec

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

    rows: int
    """Completions that decode at a time."""
    slots: int
    """Prompts held at a time."""
    width: int
    """Rows that may decode from one slot at a time."""
    places: int
    """Prefix tokens a slot can hold."""
    ring: int
    """New tokens a row can hold."""


@dataclass(frozen=True)
class Budget:
    """What rows and their slots take on a device that holds them, and what a device may give."""

    row_bytes: int
    slot_bytes: int
    width: int
    allowed: int
    shards: int = 1
    """Parts of the mesh the rows are split over."""

    @property
    def rows(self) -> int:
        """The most that fit."""
        share = 2 / (self.width + 1)
        own = int(self.allowed / (self.row_bytes + share * self.slot_bytes))
        while own and self.need(own * self.shards) > self.allowed:
            own -= 1
        return own * self.shards

    def need(self, rows: int) -> int:
        """Bytes on the device that holds most of `rows` and of their slots."""
        own = -(-rows // self.shards)
        return self.held(own, slots_for(own, self.width))

    def held(self, rows: int, slots: int) -> int:
        return rows * self.row_bytes + slots * self.slot_bytes


def slots_for(rows: int, width: int) -> int:
    """Slots that keep `rows` busy: of a slot's `width` rows some end sooner, and about half of the
    time between the first and the last of them is spent waiting."""
    return -(-2 * rows // (width + 1))


WIDEST = 4
"""Completions of one prompt that share a slot, at most, unless the config says otherwise."""


def together(completions: int, widest: int) -> int:
    """Of a prompt's completions, how many share a slot: all, or equal parts of at most `widest`."""
    return -(-completions // -(-completions // (widest or WIDEST)))


def bucket(sizes: Sequence[int], need: int) -> int:
    """The smallest capacity that holds `need` tokens: one of `sizes`, or the last, doubled.

    Prompts grow with what models write, so a list that is too short must not end a run.
    """
    largest = sizes[-1]
    while largest < need:
        largest *= 2
    return next((size for size in sizes if need <= size), largest)


MIN_ROWS = 4
"""Fewer are not worth a program of their own."""


def ladder(most: int, shards: int = 1) -> list[int]:
    """Numbers of rows there are programs for: `most`, halved down to a few, rising.

    A run begins at the rung its work fills, and goes down as its last completions end. Rungs are
    multiples of `shards` so that a mesh divides them.
    """
    rungs = [max(1, most // shards)]
    while rungs[-1] >= 2 * MIN_ROWS / shards and rungs[-1] > 1:
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
    """A stream's shapes, those of `ladder` with `one`'s capacities, and their memory's plan.

    The most rows are those asked for, or the platform's best number on every shard, as far as they
    fit; there are as many slots as keep them busy. With fewer rows the last completions of their
    prompts are left, so that every row may need a slot of its own. Else as `budget`, whose
    UserError it raises too.
    """
    plan = budget(spec, one, dtype, config.memory_gb, shards, head_parts, free)
    wanted = config.rows or BEST_ROWS.get(platform, ACCELERATOR_ROWS) * shards * streams
    if config.rows and plan.rows < wanted:
        raise UserError(
            f"sampler.rows: {wanted} rows need {plan.need(wanted) / 2**30:.2f} GiB a device, "
            f"{plan.allowed / 2**30:.2f} are allowed; set at most {plan.rows}."
        )
    most = max(1, min(wanted, plan.rows) // streams // shards)
    slots = slots_for(most, one.width) * shards
    sizes = ladder(most * shards, shards)
    return [replace(one, rows=rows, slots=min(rows, slots)) for rows in sizes], plan


def stream_count(config: SamplerConfig, platform: str, on_mesh: bool) -> int:
    """Batches that may decode side by side."""
    # XLA runs a decode step's thin products on one core; a second stream keeps another busy.
    cores = os.cpu_count() if platform == "cpu" and not on_mesh else 1
    return config.streams or min(2, cores or 1)


def first_rung(rungs: Sequence[Shapes], completions: int) -> Shapes:
    """The shapes a run of so many completions begins with: the fewest rows they come close to."""
    fits = (shapes for shapes in rungs if completions <= 1.33 * shapes.rows)
    return next(fits, rungs[-1])


def token_bytes(spec: ModelSpec, dtype: Any) -> int:
    """Bytes of one token's keys and values."""
    element = jnp.dtype(dtype).itemsize
    per_head = spec.head_dim * element + (4 if dtype == jnp.int8 else 0)
    return 2 * spec.num_layers * spec.kv_heads * per_head


def budget(
    spec: ModelSpec,
    shapes: Shapes,
    dtype: Any,
    memory_gb: float,
    shards: int = 1,
    head_parts: int = 1,
    free: int | None = None,
) -> Budget:
    """The plan for rows and slots of these capacities; the mesh splits both in `shards`, heads in
    parts. A slot holds a prompt; a row, its suffix and logits.

    `free`: bytes free on a device; default: those of this machine's.

    Raises UserError with the size that would fit when not even one row does.
    """
    allowed = int(memory_gb * 2**30)
    if not allowed:
        allowed = int(SHARE * (free_bytes() if free is None else free))
    token, logits = token_bytes(spec, dtype), LOGIT_COPIES * 4 * spec.vocab
    row = -(-(token * shapes.ring + logits) // head_parts)
    plan = Budget(row, -(-token * shapes.places // head_parts), shapes.width, allowed, shards)
    if plan.held(1, 1) > allowed:
        tokens = max(0, int((allowed - logits / head_parts) / (token / head_parts)))
        raise UserError(
            f"sampler.memory_gb: one prompt of {shapes.places} tokens with a completion of "
            f"{shapes.ring} takes {plan.held(1, 1) / 2**30:.3f} GiB a device, and "
            f"{allowed / 2**30:.3f} are allowed, enough for {tokens} tokens of both together; "
            "shorten max_new_tokens or the prompts, or set sampler.cache to int8."
        )
    return plan


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
