"""Slots on a mesh: every part of the mesh works on the slots it holds, and asks no other.

The host deals prompts to parts (`pool`), and the lanes of a prefill call lie where their slots do
(`prefill`). So what is done to a slot needs no communication, however many parts there are; left to
the partitioner, every part would gather the prefixes of all lanes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from malt_jax.models.sharding import RULES, partition

Mine = Callable[[Int[Array, "L"]], Int[Array, "L"]]
"""Slot numbers as the part that holds them counts its own; others' become one too large."""


def layouts(tree: Any, *axes: str | None) -> Any:
    """The partition of each array by its leading logical axes, as `on_own_slots` takes it."""
    mesh = jax.sharding.get_abstract_mesh()
    full = lambda x: (*axes, *[None] * (x.ndim - len(axes)))  # noqa: E731
    return jax.tree.map(lambda x: partition(full(x), x.shape, mesh), tree)


def on_own_slots(function: Callable, slots: int, inputs: Any, outputs: Any) -> Callable:
    """`function(mine, *arrays)`, run by each part on its part of the arrays; all parts together.

    `inputs`, `outputs`: layouts of the arrays given and returned. Every array that is split over
    the slots' mesh axes must hold lanes or slots of that part.
    """
    mesh = jax.sharding.get_abstract_mesh()
    names = [name for name in RULES["slots"] if mesh.shape.get(name, 1) > 1]
    if not names:
        return lambda *arrays: function(lambda numbers: numbers, *arrays)
    own = slots // math.prod(mesh.shape[name] for name in names)

    def mine(numbers: Array) -> Array:
        here = numbers - own * jax.lax.axis_index(tuple(names))
        return jnp.where((here >= 0) & (here < own), here, own)

    return jax.shard_map(
        lambda *arrays: function(mine, *arrays),
        in_specs=inputs,
        out_specs=outputs,
        check_vma=False,
    )
