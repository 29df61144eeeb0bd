"""Logical axes of parameters and activations, and the mesh axes they are laid over.

Each parameter names its axes once, where it is declared (`decoder.param`), and each rule below
says over which mesh axes a logical axis is split. An axis that does not divide evenly stays whole.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

AnyMesh = Mesh | AbstractMesh
"""An abstract mesh has sizes but no devices, which is enough for a plan."""

DATA, FSDP, TENSOR, EXPERT, SLICE = "data", "fsdp", "tensor", "expert", "slice"

RULES: Mapping[str, tuple[str, ...]] = {
    "batch": (SLICE, DATA, FSDP, EXPERT),
    "embed": (FSDP,),
    "heads": (TENSOR,),
    "kv_heads": (TENSOR,),
    "mlp": (TENSOR,),
    "expert": (EXPERT,),
    "vocab": (TENSOR,),
}
"""Logical axis -> mesh axes. What is not listed is replicated."""


def partition(
    axes: tuple[str | None, ...],
    shape: tuple[int, ...],
    mesh: AnyMesh,
    rules: Mapping[str, tuple[str, ...]] = RULES,
) -> PartitionSpec:
    """The partition of an array: each logical axis over those of its mesh axes that divide it."""
    # A mesh axis can split one dimension of an array only: the first one that asks takes it.
    entries: list[tuple[str, ...] | None] = []
    taken: set[str] = set()
    for axis, size in zip(axes, shape, strict=True):
        chosen: list[str] = []
        for name in rules.get(axis, ()) if axis else ():
            extent = mesh.shape.get(name, 1)
            # The size must divide by all chosen axes together, not only by each of them.
            parts = extent
            for other in chosen:
                parts *= mesh.shape[other]
            if extent > 1 and name not in taken and size % parts == 0:
                chosen.append(name)
        taken.update(chosen)
        entries.append(tuple(chosen) or None)
    return PartitionSpec(*entries)


def named(
    axes: tuple[str | None, ...],
    shape: tuple[int, ...],
    mesh: AnyMesh,
    rules: Mapping[str, tuple[str, ...]] = RULES,
) -> NamedSharding:
    return NamedSharding(mesh, partition(axes, shape, mesh, rules))


def mesh_parts(mesh: AnyMesh | None, axis: str) -> int:
    """Into how many parts a mesh splits a logical axis; without a mesh, one."""
    return math.prod(mesh.shape.get(name, 1) for name in RULES[axis]) if mesh is not None else 1


def parts_of(mesh: AnyMesh | None, axis: str, size: int) -> int:
    """Into how many parts a mesh splits a dimension of this size; one if it does not divide it."""
    parts = mesh_parts(mesh, axis)
    return parts if size % parts == 0 else 1


def on_mesh(mesh: AnyMesh | None) -> AbstractContextManager[Any]:
    """What is traced under it finds the mesh; no effect without devices."""
    return jax.set_mesh(mesh) if isinstance(mesh, Mesh) else nullcontext()


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Fixes an activation's layout by logical axes; does nothing without a current mesh."""
    # Activations follow the built-in rules. Those of a config are passed for a model's weights
    # only.
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, partition(axes, x.shape, mesh))


def to_host(x: jax.Array | np.ndarray) -> np.ndarray:
    """The whole array as NumPy, gathered first if other processes hold parts of it."""
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        from jax.experimental.multihost_utils import process_allgather

        # A collective: all processes must come here, or those that do wait for the others.
        return np.asarray(process_allgather(x, tiled=True))
    if isinstance(x, jax.Array):
        # An array caches its host copy for as long as it lives, which for a model's parameters adds
        # up to the whole model. So the copy is made of another array: one that shares the buffer,
        # or a copy of what several devices hold.
        x = x.addressable_data(0) if x.is_fully_replicated else x.copy()
    return np.asarray(x)
