"""Placement on a mesh: weights by their logical axes, packed rows over the data axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from malt_jax.config.training import LoopConfig
from malt_jax.data.packing import Segment
from malt_jax.models.lora import Adapter, adapter_shardings
from malt_jax.models.sharding import AnyMesh, mesh_parts, named
from malt_jax.models.spec import ModelSpec
from malt_jax.training.optim import transformation
from malt_jax.training.plan import Plan, plan_steps
from malt_jax.training.step import Program, TrainState


def plan_on(
    mesh: AnyMesh | None,
    batches: Sequence[Sequence[Segment]],
    spec: ModelSpec,
    loop: LoopConfig,
    platform: str,
) -> Plan:
    """The packing of batches in rows that the devices of the mesh share evenly."""
    devices = mesh_parts(mesh, "batch")  # those along `tensor` hold the same rows
    # Padded tokens per micro-batch: as configured, or what suits the platform.
    tokens = loop.micro_tokens or (1024 if platform == "cpu" else 16384 * devices)
    return plan_steps(batches, spec, tokens, row_multiple=devices, row_length=loop.row_length)


def place_rows(tree: Any, mesh: Mesh | None) -> Any:
    """Puts host arrays with a leading row axis on the mesh; every process holds the whole plan."""
    if mesh is None:
        return tree

    def put(x: np.ndarray) -> jax.Array:
        sharding = named(("batch",) + (None,) * (x.ndim - 1), x.shape, mesh)
        # A process is asked only for the parts of its own devices, so no rows are sent.
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.tree.map(put, tree)


def state_shardings(
    program: Program, state: TrainState, spec: ModelSpec, mesh: AnyMesh | None
) -> TrainState | None:
    """The shardings of a training state: moments and gradients are laid out like their weights."""
    if mesh is None:
        return None
    whole = NamedSharding(mesh, PartitionSpec())
    if isinstance(state.trainable, Adapter):
        weights = adapter_shardings(spec, state.trainable, mesh)
    else:
        # Full weights stay as they were laid out when the model was loaded.
        weights = jax.tree.map(lambda x: x.sharding, state.trainable)
    moments = optax.tree_map_params(
        transformation(program.optim),
        # Adafactor's factored moments have their weights' names but not their shapes.
        lambda leaf, weight, where: where if leaf.shape == weight.shape else whole,
        state.moments,
        state.trainable,
        weights,
        transform_non_params=lambda _: whole,
    )
    return TrainState(weights, moments, weights, {name: whole for name in state.sums})
