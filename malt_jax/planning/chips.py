"""Accelerators that a run can be planned for, and the reading of a topology's name.

Dense bfloat16 rate, memory and bandwidths are the vendors' published figures. TPUs: the pages of
v5e, v5p and v6e at cloud.google.com/tpu/docs; GPUs: NVIDIA's data sheets, H100 and A100 as SXM
modules of 80 GB.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from malt_jax.checks import whole_number
from malt_jax.errors import UserError, first_line
from malt_jax.models.mesh import slice_count
from malt_jax.planning.gpus import described_gpus, usable_memory

MAX_CHIPS = 100_000


@dataclass(frozen=True)
class Chip:
    """One accelerator. Unknown figures are None, as a CPU's rates are."""

    name: str
    platform: str
    memory: int | None
    """Bytes."""
    flops: float | None
    """bfloat16 operations per second."""
    bandwidth: float | None
    """Bytes per second between memory and the chip."""
    links: float | None = None
    """Bytes per second to the other chips of a slice, over all links, in one direction."""


CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v5e", "tpu", 16 << 30, 197e12, 819e9, 200e9),
        Chip("v5p", "tpu", 95 << 30, 459e12, 2765e9, 600e9),
        Chip("v6e", "tpu", 32 << 30, 918e12, 1640e9, 448e9),
        Chip("h100", "gpu", 80 << 30, 989e12, 3350e9),
        Chip("h200", "gpu", 141 << 30, 989e12, 4800e9),
        Chip("a100", "gpu", 80 << 30, 312e12, 2039e9),
        Chip("gpu16", "gpu", 16 << 30, None, None),
        Chip("gpu24", "gpu", 24 << 30, None, None),
    )
}
"""By the first part of a topology's name; `gpu16` and `gpu24` are any GPUs of so many GB."""
_KINDS = {
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
    "NVIDIA H100 80GB HBM3": "h100",
    "NVIDIA H200": "h200",
    "NVIDIA A100-SXM4-80GB": "a100",
}
"""The names that JAX gives to devices, in full: a similar name may be a slower card (PCIe) or one
with another memory (GH200, 40 GB)."""


@dataclass(frozen=True)
class Target:
    """The devices that a run is planned for."""

    name: str
    chip: Chip
    count: int
    devices: Sequence[Any] | None
    """What to compile for; None where no compiler for these devices is at hand."""
    slices: int = 1
    """TPU slices among the devices."""


def find_target(topology: str | None, *, compiles: bool = True) -> Target:
    """The target of `v5p:4x4x4` (a TPU slice) or `h100:1` (GPUs); without a name, this machine's.

    libtpu describes a TPU slice without a TPU, and JAX's CUDA plugin GPUs without a GPU. With
    `compiles` false there are no devices to compile for. Raises UserError for a name that is no
    topology.
    """
    if topology is None:
        target = _at_hand()
        return target if compiles else replace(target, devices=None)
    name, _, shape = topology.partition(":")
    if name not in CHIPS or not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){0,2}", shape):
        raise UserError(
            f"--topology: found {topology!r}, allowed: CHIP:SHAPE, for example v5p:4x4x4, v5e:4x4 "
            f"or h100:1; chips: {', '.join(CHIPS)}."
        )
    # A number too long for `whole_number` (None) is over the limit as well.
    sizes = [whole_number(size) or MAX_CHIPS + 1 for size in shape.split("x")]
    chip, count = CHIPS[name], math.prod(sizes)
    if count > MAX_CHIPS:
        raise UserError(f"--topology: {topology[:80]!r} has over {MAX_CHIPS:,} chips.")
    if chip.platform == "gpu":
        chip = replace(chip, memory=usable_memory(name))
    describe = {"tpu": partial(_tpu_devices, topology), "gpu": partial(described_gpus, name, count)}
    return Target(topology, chip, count, describe[chip.platform]() if compiles else None)


def _tpu_devices(topology: str) -> Sequence[Any]:
    # Without these, libtpu asks the cloud's metadata server for its place and locks a local TPU.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    # It logs a stack trace where it cannot print a program, a case that `compiler` handles.
    os.environ.setdefault("TPU_STDERR_LOG_LEVEL", "3")
    os.environ.setdefault("TPU_MIN_LOG_LEVEL", "3")
    from jax.experimental import topologies

    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    except Exception as error:  # libtpu's errors and its absence come as several kinds
        raise UserError(
            f"--topology: {topology!r} could not be described ({first_line(error)}). It needs "
            "libtpu (the extra `tpu`: pip install '.[tpu]' in a clone of malt-jax) and a shape "
            "that chip is offered in."
        ) from error


def _at_hand() -> Target:
    import jax

    devices = jax.devices()
    kind = devices[0].device_kind
    known, kind = chip_of(kind), kind.lower()
    # A process can ask only its own devices, and a CPU has no memory of its own.
    memory = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    chip = known or Chip(kind, devices[0].platform, memory, None, None)
    if memory is not None:
        chip = replace(chip, memory=memory)  # what this process may allocate, not what is built in
    name = f"{len(devices)} x {kind}"
    return Target(name, chip, len(devices), devices, slice_count(devices))


def chip_of(kind: str) -> Chip | None:
    """The chip that JAX calls `kind`; None for one whose rates are not in the table."""
    return CHIPS[_KINDS[kind]] if kind in _KINDS else None


def peak_flops() -> float | None:
    """bfloat16 operations per second of all devices together; None for unknown ones and CPUs."""
    import jax

    chip = chip_of(jax.devices()[0].device_kind)
    return chip.flops * jax.device_count() if chip and chip.flops else None
