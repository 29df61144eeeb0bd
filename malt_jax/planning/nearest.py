"""Settings to try for a program that does not fit. Each is planned in turn, not estimated."""

from __future__ import annotations

from collections.abc import Iterator

from malt_jax.config.reading import to_dict
from malt_jax.config.run import Config, from_dict
from malt_jax.models.mesh import Layout
from malt_jax.planning.abstract_programs import Kind
from malt_jax.planning.sizes import Sizes
from malt_jax.planning.training_steps import largest

TRIES = 3
"""How often a size is halved, and how often the parts of a weight are doubled."""


def changes(config: Config, kind: Kind, sizes: Sizes, layout: Layout) -> Iterator[dict[str, str]]:
    """Fields to change, from what costs least speed to what costs most.

    First the program's own size, then weights split over more chips. Each adds to those before it.
    """
    # Every yield is a copy, because the caller may keep it while the dictionary goes on growing.
    changed: dict[str, str] = {}
    row_devices = layout.slices * layout.data * layout.fsdp
    if kind == "sampling":
        # Each device that rows are split over needs at least one.
        field, size, least = "sampler.rows", sizes.shapes.rows, row_devices
    else:
        phase = config.train.phase(kind)
        if phase.loop.remat != "full":
            changed[f"train.{kind}.loop.remat"] = "full"
            yield dict(changed)
        shape = largest(sizes.steps[kind])
        field, size = f"train.{kind}.loop.micro_tokens", shape.rows * shape.time
        least = shape.time * row_devices
    for _ in range(TRIES):
        size //= 2
        if size >= least:
            changed[field] = str(size)
            yield dict(changed)
    data, fsdp = layout.data, layout.fsdp
    for _ in range(TRIES):
        if data % 2 == 0:
            data, fsdp = data // 2, fsdp * 2
            # All three are written out: an axis left at 0 (auto) would be chosen anew.
            sizes_by_axis = {"fsdp": fsdp, "tensor": layout.tensor, "data": data}
            changed |= {f"mesh.{axis}": str(size) for axis, size in sizes_by_axis.items()}
            yield dict(changed)


def changed(config: Config, fields: dict[str, str]) -> Config:
    """The config with other values of those fields."""
    flags = [word for name, value in fields.items() for word in (f"--{name}", value)]
    return from_dict(to_dict(config), flags)
