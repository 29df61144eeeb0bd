"""The shapes a run's programs have on a target, chosen by the run's own rules."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp

from malt_jax.config.run import Config
from malt_jax.config.training import DpoConfig, SftConfig
from malt_jax.data.packing import Segment, Shape
from malt_jax.errors import UserError
from malt_jax.models.sharding import RULES, AnyMesh
from malt_jax.models.spec import ModelSpec
from malt_jax.planning.chips import Target
from malt_jax.planning.work import Work
from malt_jax.sampling import memory
from malt_jax.sampling.memory import CacheShape, Devices
from malt_jax.sampling.prefill import PrefillShape, prefill_shape
from malt_jax.training.placement import micro_tokens, row_devices
from malt_jax.training.plan import Plan, plan_steps


@dataclass(frozen=True)
class Sizes:
    """What decides the shapes of every program."""

    dtype: Any
    shapes: CacheShape
    """Of the sampler's caches, at the last role's typical prompt."""
    lanes: PrefillShape
    sft: Plan
    dpo: Plan


def choose_sizes(
    config: Config, spec: ModelSpec, work: Work, target: Target, mesh: AnyMesh, weights: int
) -> Sizes:
    """Caches beside `weights` bytes a device, and packed rows of a typical batch."""
    platform = target.chip.platform
    name = config.model.dtype
    dtype = jnp.dtype(("float32" if platform == "cpu" else "bfloat16") if name == "auto" else name)
    sft, dpo = (_typical(phase, spec, work, mesh, platform) for phase in phases(config))
    return Sizes(
        dtype=dtype,
        shapes=_shapes(config, spec, work, target, mesh, weights, dtype),
        lanes=prefill_shape(config.sampler, platform, _parts(mesh, "batch")),
        sft=sft,
        dpo=dpo,
    )


def phases(config: Config) -> tuple[SftConfig, DpoConfig]:
    return config.train.sft, config.train.dpo


def _shapes(
    config: Config,
    spec: ModelSpec,
    work: Work,
    target: Target,
    mesh: AnyMesh,
    weights: int,
    dtype: Any,
) -> CacheShape:
    """The shapes the sampler would choose for a block's completions by the last role.

    They are one stream's; only a CPU has several by default.
    """
    sampler, last = config.sampler, work.roles[-1]
    one = CacheShape(
        rows=1,
        entries=1,
        siblings=memory.siblings_per_entry(config.pipeline.roles[-1].branch, sampler.width),
        # Prompts vary: a quarter more than the mean is what the longest of a block needs.
        prefix_tokens=memory.bucket(
            sampler.prefix_buckets, min(round(1.25 * last.prompt), spec.context)
        ),
        new_tokens=memory.bucket(
            sampler.new_token_buckets, max(role.longest for role in work.roles)
        ),
    )
    shards, heads = (_parts(mesh, axis) for axis in ("batch", "kv_heads"))
    platform = target.chip.platform
    streams = memory.stream_count(sampler, platform, target.count > 1)
    try:
        devices = Devices(
            platform,
            shards=shards,
            kv_shards=heads if spec.kv_heads % heads == 0 else 1,
            streams=streams,
            free_bytes=None if target.chip.memory is None else max(0, target.chip.memory - weights),
        )
        cached = jnp.int8 if sampler.cache == "int8" else dtype
        shapes, _ = memory.plan_shapes(spec, one, cached, sampler, devices)
    except UserError:
        # Not even one fits beside the weights; the plan says so, and what would.
        return replace(one, rows=shards, entries=shards)
    block = min(config.search.block, work.train_questions)
    completions = block * last.nodes // max(work.train_questions, 1)
    return memory.first_shape(shapes, completions // streams)


def _typical(
    phase: SftConfig | DpoConfig, spec: ModelSpec, work: Work, mesh: AnyMesh, platform: str
) -> Plan:
    """The packing of one batch of the last role's examples, with lengths around their mean."""
    last, devices = work.roles[-1], row_devices(mesh)
    branches = 2 if isinstance(phase, DpoConfig) else 1

    def example(index: int) -> Segment:
        # Lengths from half to one and a half times the mean, the same for every plan.
        share = 0.5 + (index * 0.618) % 1.0
        completion = (0,) * max(1, min(round(share * last.completion), last.longest))
        room = phase.loop.max_length - branches * len(completion)
        prompt = (0,) * max(1, min(last.prompt, room))
        numbers = tuple(range(branches * index, branches * (index + 1)))
        return Segment(prompt, (completion,) * branches, numbers)

    batch = list(map(example, range(phase.batch_size)))
    tokens = micro_tokens(phase.loop, platform, devices)
    return plan_steps([batch], spec, tokens, row_multiple=devices, row_length=phase.loop.row_length)


def largest(plan: Plan) -> Shape:
    """The shape most tokens are computed in."""
    shapes = [micro.shape for step in plan.steps for micro in step]
    return max(shapes, key=lambda shape: (shape.rows * shape.time, shape.time))


def micro_batches(plan: Plan) -> Iterator[int]:
    """Tokens of each micro-batch of a typical step."""
    for step in plan.steps:
        for micro in step:
            yield micro.shape.rows * micro.shape.time


def _parts(mesh: AnyMesh, axis: str) -> int:
    return math.prod(mesh.shape.get(name, 1) for name in RULES[axis])
