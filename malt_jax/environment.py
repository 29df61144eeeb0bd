"""Checks of the environment before work begins: variables, devices, memory and disk.

A fault of the environment would otherwise end a run with a traceback, after hours, or change its
results without a word. Every check ends with one sentence that says what to change.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import traceback
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any

from malt_jax.checks import show
from malt_jax.errors import Unavailable, UserError, first_line
from malt_jax.escape import one_line
from malt_jax.memory import free_memory

PINNED: dict[str, Any] = {
    "jax_enable_x64": False,
    "jax_disable_jit": False,
    "jax_default_prng_impl": "threefry2x32",
    "jax_threefry_partitionable": True,
}
"""Settings of JAX that would change results or break programs, and the values malt computes with.

JAX reads each from the environment variable of the same name in capitals."""


def check_environment(env: Mapping[str, str] = os.environ) -> None:
    """Raises UserError for variables that Python, XLA or JAX could not work with.

    Variables that would change results are overruled, and one line says so. No device is touched:
    on a cluster that may only happen once the processes of the run have found each other.
    """
    _check_warnings()
    _check_xla_flags(env)
    try:
        import jax
    except ImportError as error:
        raise UserError(f"JAX cannot be imported ({error}); install it again.") from None
    except Exception as error:  # JAX refuses values of its variables with errors of several kinds
        raise UserError(
            f"JAX refuses a variable of the environment ({first_line(error)}); correct or unset "
            f"it. Set are: {', '.join(sorted(n for n in env if n.startswith('JAX_')))}."
        ) from None
    for name, value in PINNED.items():
        variable = name.upper()
        # Without its variable, a setting was made by a program itself and is left alone.
        if variable in env and getattr(jax.config, name) != value:
            jax.config.update(name, value)
            shown = show(env[variable])
            print(f"malt: {variable}={shown} is ignored; malt computes with {value}.",
                  file=sys.stderr)  # fmt: skip


def quiet_libraries(env: MutableMapping[str, str] = os.environ) -> None:
    """Keeps libraries from reporting retries and hints of their own beside our one sentence."""
    for library in ("HF_HUB", "TRANSFORMERS", "DATASETS"):
        env.setdefault(f"{library}_VERBOSITY", "error")


def devices() -> list[str]:
    """The devices JAX computes on, one line each; UserError says why there is none."""
    import jax

    try:
        found = jax.devices()
    except Exception as error:
        if refusal := unusable_backend(error):
            raise refusal from None
        raise
    return [f"{device.platform} {device.device_kind} {device.id}" for device in found]


def leave_devices_free() -> None:
    """Lets a command that only compiles for other devices use the CPU, unless a variable says so.

    JAX has read its variables already, so setting one would change nothing.
    """
    import jax

    if not jax.config.values["jax_platforms"]:
        jax.config.update("jax_platforms", "cpu")


def unusable_backend(error: Exception) -> UserError | None:
    """What to raise if an error means that JAX found no usable device; None for any other one.

    A platform that JAX_PLATFORMS names is the user's choice; a device that JAX found by itself and
    cannot use may work again later.
    """
    # The errors are of several kinds, so the function that raised them says what they mean.
    frames = traceback.extract_tb(error.__traceback__)
    if not any(f.name == "backends" and f.filename.endswith("xla_bridge.py") for f in frames):
        return None
    reason = first_line(error) if str(error).strip() else "JAX has no plugin for it"
    if wanted := os.environ.get("JAX_PLATFORMS"):
        return UserError(
            f"JAX_PLATFORMS: found {show(wanted)}, which cannot be used here ({reason}); install "
            "its plugin and driver (for NVIDIA GPUs pip install 'jax[cuda13]'), or unset "
            "JAX_PLATFORMS to use the devices there are."
        )
    return Unavailable(
        f"no device can be used ({reason}); check its driver, or set JAX_PLATFORMS=cpu."
    )


def check_memory(need: int) -> None:
    """Raises UserError if a device has less memory than `need` bytes.

    On a CPU that is the memory this process may still take.
    """
    import jax

    device = jax.local_devices()[0]
    # On a CPU the arrays are in the memory of this process.
    if device.platform == "cpu":
        have, where = free_memory(), "this process may still take"
    else:
        have = (device.memory_stats() or {}).get("bytes_limit")
        where = f"{device.device_kind} has"
    # A device that reports no limit is not refused.
    if have is not None and need > have:
        raise UserError(
            f"memory: the run needs about {_gigabytes(need)} on each device and {where} "
            f"{_gigabytes(have)}; `malt plan` lists the need by program. Lower --sampler.rows, "
            "--sampler.memory-gb or --train.sft.loop.micro-tokens, or use a larger machine."
        )


def check_disk(folder: str, need: int) -> None:
    """Raises UserError if the disk of a folder, which may not exist yet, has not `need` bytes."""
    place = Path(folder).absolute()
    while not os.path.exists(place) and place != place.parent:
        place = place.parent
    have = shutil.disk_usage(place).free
    if need > have:
        raise UserError(
            f"output_dir: the run writes about {_gigabytes(need)} to {folder} and its disk has "
            f"{_gigabytes(have)} free; choose another --output-dir, free some space, or leave out "
            "the merged models (--export.merged false)."
        )


def _check_warnings() -> None:
    """Libraries warn in passing; a warning that is an error would end the run there."""
    for option in sys.warnoptions:
        action = option.partition(":")[0].strip()
        # Python accepts an action by any of its first letters: `-W e` means error too.
        if action and "error".startswith(action):
            raise UserError(
                f"PYTHONWARNINGS (or python -W): found {show(option)}, which turns warnings of "
                "libraries into errors in the middle of a run; unset it, or use 'default'."
            )


def _check_xla_flags(env: Mapping[str, str]) -> None:
    """XLA ends the process, without an exception, at a flag that it does not know.

    So another process tries the flags first: jaxlib alone reads them, which takes a third of a
    second where JAX would take more than one.
    """
    if not env.get("XLA_FLAGS"):
        return
    code = "from jaxlib.xla_client import CompileOptions; CompileOptions()"
    trial = subprocess.run(
        [sys.executable, "-c", code],
        env=env,
        capture_output=True,
        text=True,
        errors="replace",
    )
    # Another failure of the trial, such as a missing package, is not the fault of the flags.
    if trial.returncode < 0 or "XLA_FLAGS" in trial.stderr:
        said = [line for line in trial.stderr.splitlines() if "XLA_FLAGS" in line]
        reason = said[0].rpartition("] ")[2] if said else f"it ends with {trial.returncode}"
        raise UserError(
            f"XLA_FLAGS: found {show(env['XLA_FLAGS'])}, which XLA refuses ({one_line(reason)}); "
            "correct or unset it."
        )


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:,.2f} GB" if count >= 1e7 else f"{count / 1e6:,.2f} MB"
