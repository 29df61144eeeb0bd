"""The device mesh of a run, chosen by the number of devices, the model's size and the memory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from malt_jax.checks import nearest
from malt_jax.config.mesh import MeshConfig
from malt_jax.errors import UserError
from malt_jax.models.sharding import DATA, EXPERT, FSDP, RULES, SLICE, TENSOR
from malt_jax.models.spec import ModelSpec

AXES = (SLICE, DATA, FSDP, EXPERT, TENSOR)
WEIGHT_SHARE = 0.5
"""Largest share of a device's memory for weights; the rest is for caches and activations."""
MAX_TENSOR = 8
"""Tensor parallelism communicates in every layer, so it stays within a host or a torus axis."""


@dataclass(frozen=True)
class Layout:
    """The size of each mesh axis, and the reason for it."""

    slices: int
    data: int
    fsdp: int
    tensor: int
    why: str
    expert: int = 1

    @property
    def sizes(self) -> dict[str, int]:
        """By mesh axis, the slowest network first; without `expert` where nothing uses it."""
        sizes = {SLICE: self.slices, DATA: self.data, FSDP: self.fsdp}
        experts = {EXPERT: self.expert} if self.expert > 1 else {}
        return sizes | experts | {TENSOR: self.tensor}

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.sizes.values())


def choose_layout(
    config: MeshConfig,
    devices: int,
    slices: int,
    spec: ModelSpec,
    weight_bytes: int,
    device_bytes: int | None,
) -> Layout:
    """The configured layout with its zeros (auto) filled in.

    The weights are split over as few devices as leave half of each for caches and activations:
    the experts of a mixture first, which are most of its weights and of which each token reads few,
    then over `tensor`, since decoding reads all weights for every token and gains from each part
    that another device reads, then over `fsdp`, which costs one gather per layer. Devices that are
    left hold replicas (`data`). Where the memory is unknown (a CPU), only what the config splits is
    split.
    """
    # 1. What the config fixes must divide the devices of a slice; `free` is left for its zeros.
    slices = config.slices or slices
    if devices % slices:
        raise UserError(f"mesh.slices: {devices} devices do not divide into {slices} slices.")
    per_slice = devices // slices
    experts = spec.mixture.experts if spec.mixture else 1
    if config.expert > 1 and experts % config.expert:
        have = f"{experts} experts per layer" if spec.mixture else "no experts"
        raise UserError(
            f"mesh.expert: found {config.expert}, but this {spec.family} model has {have}; "
            "allowed: 0 (auto) or a divisor of their number."
        )
    names = (DATA, FSDP, EXPERT, TENSOR) if spec.mixture else (DATA, FSDP, TENSOR)
    fixed = [getattr(config, name) for name in names]
    given = math.prod(size for size in fixed if size)
    if per_slice % given or (all(fixed) and given != per_slice):
        raise UserError(
            f"mesh: {' x '.join(names)} is {' x '.join(map(str, fixed))}, which does not make up "
            f"the {per_slice} devices of a slice; set one of them to 0 (auto)."
        )
    free = per_slice // given
    data, fsdp, tensor = config.data, config.fsdp, config.tensor
    expert = config.expert if spec.mixture else 1
    split = (fsdp or 1) * (tensor or 1) * (expert or 1)
    why = []
    needed = 1
    if device_bytes:
        needed = math.ceil(weight_bytes / (WEIGHT_SHARE * device_bytes))
        why.append(
            f"weights of {weight_bytes / 2**30:.1f} GiB need {needed} x "
            f"{device_bytes / 2**30:.0f} GiB at half of each device"
        )
    # 2. The split grows in powers of two until the weights fit or nothing divides further. If they
    # still do not fit, that is no error here: a plan reports it per program.
    if not expert:
        expert = 1
        while split * expert < needed and experts % (expert * 2) == 0 == free % (expert * 2):
            expert *= 2
        free //= expert
        split *= expert
    if not tensor:
        tensor = 1
        while split * tensor < needed and _may_split(spec, tensor * 2, free):
            tensor *= 2
        free //= tensor
        split *= tensor
    if not fsdp:
        fsdp = 1
        while split * fsdp < needed and free % (fsdp * 2) == 0:
            fsdp *= 2
        free //= fsdp
    # 3. Devices that no split needs hold replicas.
    if not data:
        data, free = free, 1
    elif free > 1:  # data is fixed: what is left can only split the weights further
        fsdp, free = fsdp * free, 1
    why.append(f"{data * slices} replicas over {devices} devices")
    return Layout(slices, data, fsdp, tensor, "; ".join(why), expert)


def _may_split(spec: ModelSpec, tensor: int, free: int) -> bool:
    """Whether heads, key heads and channels divide, so that no device computes another's part."""
    fits = spec.heads % tensor == 0 and spec.kv_heads % tensor == 0 and spec.d_mlp % tensor == 0
    return fits and tensor <= MAX_TENSOR and free % tensor == 0


def make_mesh(layout: Layout, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh of a layout over `devices` (default: all), slices outermost over the DCN."""
    devices = list(jax.devices() if devices is None else devices)
    if math.prod(layout.shape) != len(devices):
        raise UserError(
            f"mesh: {' x '.join(map(str, layout.shape))} ({', '.join(layout.sizes)}) is not the "
            f"{len(devices)} devices there are."
        )
    if devices[0].platform == "tpu":
        try:
            grid = _torus(layout, devices, split=False)
        except NotImplementedError:  # an axis is no product of the torus' own axes: 4 of an 8 x 8
            grid = _torus(layout, devices, split=True)
    else:
        grid = np.asarray(devices).reshape(layout.shape)
    # Auto: what no constraint fixes is left to the compiler, layouts of activations above all.
    return Mesh(grid, tuple(layout.sizes), axis_types=(AxisType.Auto,) * grid.ndim)


def _torus(layout: Layout, devices: Sequence[Any], split: bool) -> np.ndarray:
    """TPUs ordered so that mesh axes lie along axes of the torus, or with `split` parts of them."""
    from jax.experimental import mesh_utils

    # The first shape is within a slice, the second across slices. Only the slice axis crosses them,
    # because the network between slices (DCN) is slower than the links within one.
    if layout.slices > 1 and hasattr(devices[0], "slice_index"):
        return mesh_utils.create_hybrid_device_mesh(
            (1, *layout.shape[1:]),
            (layout.slices, *[1] * (len(layout.shape) - 1)),
            devices,
            allow_split_physical_axes=split,
        )
    return mesh_utils.create_device_mesh(layout.shape, devices, allow_split_physical_axes=split)


def rules(config: MeshConfig) -> Mapping[str, tuple[str, ...]]:
    """The built-in sharding rules, overridden by those of the config."""
    for axis, names in config.rules.items():
        if axis not in RULES:
            raise UserError(
                f"mesh.rules.{axis}: no parameter has this logical axis; allowed: "
                f"{', '.join(RULES)}.{nearest(axis, RULES)}"
            )
        for name in filter(None, names.split(",")):
            if name not in AXES:
                raise UserError(
                    f"mesh.rules.{axis}: {name!r} is not a mesh axis; allowed: {', '.join(AXES)}."
                )
    own = {axis: tuple(filter(None, names.split(","))) for axis, names in config.rules.items()}
    return {**RULES, **own}


def slice_count(devices: Sequence[Any]) -> int:
    """Number of TPU slices that the devices belong to; 1 elsewhere."""
    return len({getattr(device, "slice_index", 0) for device in devices})


def device_memory(device: Any) -> int | None:
    """Bytes of memory on a device, or None where it does not say (a CPU)."""
    try:
        stats = device.memory_stats() or {}
    except (AttributeError, NotImplementedError, jax.errors.JaxRuntimeError):
        return None
    return stats.get("bytes_limit") if device.platform != "cpu" else None
