"""The nearest setting that fits, for a program that does not: tried, not estimated."""

from __future__ import annotations

from collections.abc import Iterator

from malt_jax.config.reading import to_dict
from malt_jax.config.run import Config, from_dict
from malt_jax.models.mesh import Layout
from malt_jax.planning.programs import Kind
from malt_jax.planning.sizes import Sizes, largest

TRIES = 3
"""Halvings of a size, and doublings of the parts a weight is split into."""


def changes(config: Config, kind: Kind, sizes: Sizes, layout: Layout) -> Iterator[dict[str, str]]:
    """Fields to change, from what costs least speed to what costs most; each adds to those before.

    A program's own size comes first, then splitting weights over more chips.
    """
    changed: dict[str, str] = {}
    if kind == "sampling":
        rows = sizes.shapes.rows
        for _ in range(TRIES):
            rows //= 2
            if rows >= max(1, layout.slices * layout.data * layout.fsdp):
                changed["sampler.rows"] = str(rows)
                yield dict(changed)
    else:
        phase = getattr(config.train, kind)
        if phase.loop.remat != "full":
            changed[f"train.{kind}.loop.remat"] = "full"
            yield dict(changed)
        shape = largest(getattr(sizes, kind))
        tokens = shape.rows * shape.time
        for _ in range(TRIES):
            tokens //= 2
            if tokens >= shape.time * layout.slices * layout.data * layout.fsdp:
                changed[f"train.{kind}.loop.micro_tokens"] = str(tokens)
                yield dict(changed)
    free, fsdp = layout.data, layout.fsdp
    for _ in range(TRIES):
        if free % 2 == 0:
            free, fsdp = free // 2, fsdp * 2
            changed |= {"mesh.fsdp": str(fsdp), "mesh.tensor": str(layout.tensor)}
            changed["mesh.data"] = str(free)
            yield dict(changed)


def changed(config: Config, fields: dict[str, str]) -> Config:
    """The config with those fields."""
    flags = [word for name, value in fields.items() for word in (f"--{name}", value)]
    return from_dict(to_dict(config), flags)
