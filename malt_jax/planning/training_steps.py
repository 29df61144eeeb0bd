"""Typical steps of training: what roles' fields make of one batch, and which needs most memory."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from malt_jax.config.run import Config
from malt_jax.config.training import DpoConfig, PhaseConfig
from malt_jax.data.packing import Segment, Shape
from malt_jax.models.packed_attention import block_size
from malt_jax.models.sharding import AnyMesh, mesh_parts, parts_of
from malt_jax.models.spec import ModelSpec
from malt_jax.planning.work import RoleWork, Work
from malt_jax.training import remat
from malt_jax.training.placement import plan_on
from malt_jax.training.plan import Plan
from malt_jax.training.step import CHUNK_BYTES, CPU_CHUNK_BYTES
from malt_jax.tree.policies import STAR

FLOAT32 = 4


def fields_of(config: Config, phase: str, work: Work) -> list[PhaseConfig]:
    """The distinct fields that roles train with in a phase."""
    found = [
        config.training_of(role.name).phase(phase) for role in work.roles if phase in role.examples
    ]
    if phase == "sft" and work.star:
        found.append(config.training_of(STAR).sft)
    return list(dict.fromkeys(found))


def typical_step(
    phase: PhaseConfig, spec: ModelSpec, role: RoleWork, mesh: AnyMesh, platform: str
) -> Plan:
    """The packing of one batch of a role's examples, with lengths spread around their mean."""
    branches = 2 if isinstance(phase, DpoConfig) else 1

    def example(index: int) -> Segment:
        # Multiples of the golden ratio spread evenly: 0.5 to 1.5 of the mean, the same every time.
        share = 0.5 + (index * 0.618) % 1.0
        completion = (0,) * max(1, min(round(share * role.completion), role.longest))
        # Completions are kept whole, and the prompt gets what they leave of the longest sequence.
        room = phase.loop.max_length - branches * len(completion)
        prompt = (0,) * max(1, min(role.prompt, room))
        numbers = tuple(range(branches * index, branches * (index + 1)))
        return Segment(prompt, (completion,) * branches, numbers)

    batch = list(map(example, range(phase.batch_size)))
    return plan_on(mesh, [batch], spec, phase.loop, platform)


def largest(plan: Plan) -> Shape:
    """The shape with the most tokens."""
    # Of two equal sizes the longer rows cost more, in attention.
    shapes = [micro.shape for step in plan.steps for micro in step]
    return max(shapes, key=lambda shape: (shape.rows * shape.time, shape.time))


def working_bytes(
    phase: PhaseConfig, spec: ModelSpec, shape: Shape, element: int, platform: str,
    mesh: AnyMesh | None, backward: bool = True,
) -> int:  # fmt: skip
    """What a micro-batch needs on one device by formula: activations, scores and logits.

    `element`: bytes of an activation. Without a backward pass only one layer is held.
    """
    shards = mesh_parts(mesh, "batch")
    rows = -(-shape.rows // shards)
    policy = remat.resolve(phase.loop.remat, platform)
    policy = remat.of_shape(policy, spec, shape.rows * shape.time, element)
    # As if no part of a layer were split over devices.
    activations = remat.kept_bytes(spec, policy, rows * shape.time, element)
    if not backward:
        activations //= spec.num_layers
    # Scores of one layer's last block of queries: forward, probabilities, and their gradient.
    heads = spec.heads // parts_of(mesh, "heads", spec.heads)
    scores = 3 * FLOAT32 * rows * heads * block_size(shape.time) * shape.time
    # Logits of a chunk of targets: forward, gradient, and the product with the head.
    chunk = CPU_CHUNK_BYTES if platform == "cpu" else CHUNK_BYTES
    if phase.loop.logit_chunk:
        # A chunk has one target of each row at least, and no more than there are.
        targets = min(max(phase.loop.logit_chunk, shape.rows), shape.rows * shape.targets)
        chunk = FLOAT32 * spec.vocab * targets
    return activations + scores + 3 * chunk // (shards * parts_of(mesh, "vocab", spec.vocab))


def for_largest(config: Config, fields: dict[str, PhaseConfig], work: Work) -> Config:
    """The config whose `train` is what the largest programs of the roles are compiled for.

    That is the adapter of the role with the largest rank, and `fields` in each phase.
    """
    every = [config.training_of(role.name) for role in work.roles]
    every += [config.training_of(STAR)] if work.star else []
    adapter = max((train.lora for train in every), key=lambda x: x.rank)
    parts: dict[str, Any] = {"lora": adapter, **fields}
    return replace(config, train=replace(config.train, **parts))
