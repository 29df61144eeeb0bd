"""The shapes that a run's programs have on a target, chosen by the rules of the run itself."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp

from malt_jax.config.run import Config
from malt_jax.config.training import PhaseConfig
from malt_jax.errors import UserError
from malt_jax.models.sharding import AnyMesh, mesh_parts
from malt_jax.models.spec import ModelSpec
from malt_jax.planning.chips import Target
from malt_jax.planning.training_steps import fields_of, largest, typical_step, working_bytes
from malt_jax.planning.work import Work
from malt_jax.sampling import memory
from malt_jax.sampling.attention_choice import choose_attention
from malt_jax.sampling.memory import CacheShape, Devices
from malt_jax.sampling.prefill import PrefillShape, prefill_shape
from malt_jax.training.plan import Plan


@dataclass(frozen=True)
class Sizes:
    """Everything that decides the shapes of the programs."""

    dtype: Any
    """Dtype of weights and activations."""
    shapes: CacheShape
    """Shapes of the sampler's caches, for the last role's prompts."""
    prefill: PrefillShape
    """Shapes of prefill calls."""
    steps: dict[str, Plan]
    """Of each phase of training, the typical step that needs most memory."""
    fields: dict[str, PhaseConfig]
    """The fields that this step has."""
    step_tokens: dict[PhaseConfig, int]
    """Tokens that a typical step computes, by the fields of each role."""


def model_dtype(config: Config, platform: str) -> Any:
    """The dtype the model runs in: the configured one, or the platform's."""
    name = config.model.dtype
    if name == "auto":
        name = "float32" if platform == "cpu" else "bfloat16"
    return jnp.dtype(name)


def choose_sizes(
    config: Config, spec: ModelSpec, work: Work, target: Target, mesh: AnyMesh, weights: int
) -> Sizes:
    """Caches that fit beside `weights` bytes per device, and packed rows of typical batches."""
    # Prompts grow from role to role, so the last role's need the largest shapes.
    platform, last = target.chip.platform, work.roles[-1]
    dtype = model_dtype(config, platform)
    found = {
        phase: {
            fields: typical_step(fields, spec, last, mesh, platform)
            for fields in fields_of(config, phase, work)
        }
        for phase in work.phases
    }

    def memory_of(step: tuple[PhaseConfig, Plan]) -> int:
        return working_bytes(step[0], spec, largest(step[1]), dtype.itemsize, platform, mesh)

    most = {phase: max(steps.items(), key=memory_of) for phase, steps in found.items()}
    return Sizes(
        dtype=dtype,
        shapes=_cache_shapes(config, spec, work, target, mesh, weights, dtype),
        prefill=prefill_shape(config.sampler, platform, mesh_parts(mesh, "batch")),
        steps={phase: plan for phase, (_, plan) in most.items()},
        fields={phase: fields for phase, (fields, _) in most.items()},
        step_tokens={
            fields: plan.row_tokens for steps in found.values() for fields, plan in steps.items()
        },
    )


def _cache_shapes(
    config: Config,
    spec: ModelSpec,
    work: Work,
    target: Target,
    mesh: AnyMesh,
    weights: int,
    dtype: Any,
) -> CacheShape:
    """The shapes that the sampler would choose for a block of the last role's completions.

    They are those of one of the sampler's streams; by default only a CPU has several.
    """
    sampler, last, platform = config.sampler, work.roles[-1], target.chip.platform
    attention = choose_attention(sampler.attention, platform, spec, dtype)
    one = CacheShape(
        rows=1,
        entries=1,
        siblings=memory.siblings_per_entry(
            last.nodes // last.prefixes, attention.width(sampler.width)
        ),
        # The longest prompt of a block needs about a quarter more than the mean.
        prefix_tokens=memory.bucket(
            sampler.prefix_buckets, min(round(1.25 * last.prompt), spec.context), attention.block
        ),
        new_tokens=memory.bucket(
            sampler.new_token_buckets, max(role.longest for role in work.roles), attention.block
        ),
    )
    shards = mesh_parts(mesh, "batch")
    streams = memory.stream_count(sampler, platform, target.count > 1)
    known = target.chip.memory
    try:
        devices = Devices(
            platform,
            shards=shards,
            kv_shards=memory.kv_shards(spec, mesh),
            streams=streams,
            free_bytes=None if known is None else max(0, known - weights),
        )
        cached = memory.cache_dtype(sampler, dtype, platform)
        shapes, _ = memory.plan_shapes(spec, one, cached, sampler, devices)
    except UserError:
        # Not even one row fits beside the weights: the plan says so, and what would fit.
        return replace(one, rows=shards, entries=shards)
    # A block of questions may not fill the most rows; the run then begins in a smaller shape.
    block = min(config.search.block, work.train_questions)
    completions = block * last.nodes // max(work.train_questions, 1)
    return memory.first_shape(shapes, completions // streams)


def search_programs(
    config: Config, spec: ModelSpec, work: Work, sizes: Sizes, platform: str, mesh: AnyMesh
) -> int:
    """How many programs the sampler compiles in one search, at most."""
    sampler, shards = config.sampler, mesh_parts(mesh, "batch")
    # Short prompts leave memory for as many rows as are wanted, and so for most numbers of rows.
    streams = memory.stream_count(sampler, platform, mesh.size > 1)
    most = memory.rows_wanted(sampler, platform, shards, streams) // streams
    counts = len(memory.row_counts(most, shards))
    # Of one group of prompts: its caches, copies of prefixes, every size of prefill call, decode
    # for every number of rows, and the way from each number to the next.
    programs = 2 + len(sizes.prefill.counts) + counts + (counts - 1)
    capacities = sum(size < spec.context for size in sampler.prefix_buckets) + 1
    block = min(config.search.block, work.train_questions)
    blocks = -(-work.train_questions // block)
    total = 0
    for role in work.roles:
        completions = block * role.nodes // work.train_questions
        groups = completions // memory.least_group(platform) + 1
        total += min(groups * blocks, capacities) * programs
    return total
