"""The compiler for GPUs on a machine without one: described devices, and what it must be told."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from malt_jax.checks import show
from malt_jax.errors import UserError, first_line

GPUS = tomllib.loads(Path(__file__).with_name("gpus.toml").read_text())
"""What XLA asks of each GPU, by the first part of a topology's name."""
PLUGIN = "jax_cuda13_plugin"
INSTALL = "pip install '.[plan-gpu]' in a clone of malt-jax"
"""Brings the compiler (the plugin, ptxas and libdevice), but not the libraries that run programs.
"""
PREALLOCATED = 0.75
"""Share of a GPU's memory that JAX takes by default."""
MEMORY_VARIABLES = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")
"""What sets another share; the second is the older name."""
COMPILER_OPTIONS: dict[str, str | bool] = {"xla_gpu_autotune_level": "0"}
"""Options without which XLA would choose between kernels by running them on a GPU."""
# What all these GPUs have in common; the versions of CUDA and cuDNN are those of the plugin.
_CONFIG = """gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: {threads_per_core}
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  shared_memory_per_block: 49152 shared_memory_per_block_optin: {shared_per_block}
  shared_memory_per_core: {shared_per_core} core_count: {cores} fpus_per_core: {units_per_core}
  l2_cache_size: {l2} clock_rate_ghz: {clock_ghz} memory_bandwidth: {bandwidth}
  device_memory_size: {memory}
  cuda_compute_capability {{ major: {capability[0]} minor: {capability[1]} }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
runtime_version {{ major: 13 minor: 0 patch: 0 }}
device_description_str: "{name}"
"""


def usable_memory(chip: str) -> int:
    """Bytes of a GPU that a run's process may allocate."""
    variable = next((name for name in MEMORY_VARIABLES if os.environ.get(name)), None)
    if variable is None:
        return int(PREALLOCATED * GPUS[chip]["memory"])
    try:
        share = float(os.environ[variable])
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        found = show(os.environ[variable])
        raise UserError(f"{variable}: found {found}, allowed: a share of the memory, such as 0.9.")
    return int(share * GPUS[chip]["memory"])


def described_gpus(chip: str, count: int) -> Sequence[Any]:
    """Devices to compile for; raises UserError where the compiler is not installed."""
    if find_spec(PLUGIN) is None:
        raise UserError(
            f"--topology: {chip}:{count} needs XLA's compiler for GPUs, {PLUGIN}, which is not "
            f"installed; no GPU is needed: {INSTALL}. With --estimate nothing is compiled, and "
            "memory is estimated by formula."
        )
    from jax.experimental import topologies

    try:
        return topologies.get_topology_desc(
            platform="cuda",
            target_config=_CONFIG.format(**GPUS[chip]),
            topology=f"1x1x{count}",
        ).devices
    except Exception as error:  # the plugin's errors come as several kinds
        raise UserError(
            f"--topology: {chip}:{count} could not be described ({first_line(error)})."
        ) from error


@contextmanager
def known_to_jax() -> Iterator[None]:
    """Lets JAX lower programs for GPUs in this block, on a machine without one as well.

    The block must not be entered by two threads at once, because JAX has one table of platforms.
    """
    from jax._src import xla_bridge

    found = xla_bridge.canonicalize_platform

    def canonical(platform: str) -> str:
        try:
            return found(platform)
        except RuntimeError:
            # JAX asks for "gpu" while it lowers, although no such backend is here (its issue
            # 23971).
            if platform != "gpu":
                raise
            return "cuda"

    xla_bridge.canonicalize_platform = canonical
    try:
        yield
    finally:
        xla_bridge.canonicalize_platform = found
