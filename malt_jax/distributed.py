"""Several processes as one run, on JAX's own distributed runtime.

Every process runs the same command and holds the same plan, so all of them make the same calls in
the same order. Process 0 writes the run directory; see docs/scaling.md for what is shared.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from malt_jax.checks import show, whole_number
from malt_jax.config.mesh import MeshConfig
from malt_jax.errors import UserError
from malt_jax.storage import writers

COORDINATOR, PROCESSES, PROCESS = "MALT_COORDINATOR", "MALT_PROCESSES", "MALT_PROCESS"

JOIN_SECONDS = 300
"""How long process 0 waits for all others to come."""
LEAVE_SECONDS = 10
"""How long a process that failed waits for the others to fail as well."""


@dataclass(frozen=True)
class Place:
    """This process among all processes of the run."""

    coordinator: str
    """host:port of process 0."""
    processes: int
    process: int


def find_place(config: MeshConfig, env: Mapping[str, str] = os.environ) -> Place | None:
    """The place that fields of `mesh` or MALT_* variables give; fields go first. None: neither.

    Raises UserError when only a part of it is given, or a number is out of range.
    """
    given = {
        "coordinator": config.coordinator or env.get(COORDINATOR) or None,
        "processes": _number(config.processes, PROCESSES, env),
        "process": _number(config.process, PROCESS, env),
    }
    missing = [name for name, value in given.items() if value is None]
    if len(missing) == len(given):
        return None
    if missing:
        raise UserError(
            f"mesh.{missing[0]}: missing, though {', '.join(n for n in given if n not in missing)} "
            f"is given; set mesh.coordinator, mesh.processes and mesh.process (or {COORDINATOR}, "
            f"{PROCESSES} and {PROCESS}), or none of them."
        )
    place = Place(**given)  # type: ignore[arg-type]
    if not place.processes >= 1:
        raise UserError(f"mesh.processes: found {place.processes}, allowed: 1 or more.")
    if not 0 <= place.process < place.processes:
        raise UserError(
            f"mesh.process: found {place.process}, allowed: 0 to {place.processes - 1}."
        )
    host, _, port = place.coordinator.rpartition(":")
    if not host or not 1 <= (whole_number(port) or 0) <= 65535:
        raise UserError(
            f"mesh.coordinator: found {show(place.coordinator)}, allowed: host:port, as "
            "10.0.0.1:1234."
        )
    return place


def detectable(env: Mapping[str, str] = os.environ) -> bool:
    """Whether this machine is one of several that JAX can find by itself: Slurm, GKE, Cloud TPU."""
    if env.get("SLURM_JOB_ID") and (_number(None, "SLURM_NTASKS", env) or 1) > 1:
        return True
    if "," in env.get("TPU_WORKER_HOSTNAMES", "") or "MEGASCALE_COORDINATOR_ADDRESS" in env:
        return True
    chips = any(Path(path).exists() for path in ("/dev/accel0", "/dev/vfio/0"))
    return chips and env.get("JAX_PLATFORMS", "tpu").startswith("tpu")


def initialize(config: MeshConfig) -> None:
    """Joins this process to the run's others, before JAX is first used; alone it does nothing.

    Processes find each other by `find_place`, or by themselves where `detectable`. When one dies,
    JAX's heartbeat ends the others after at most `mesh.heartbeat` seconds and its next check, with
    a message that names the one that is gone. Raises UserError when the others do not come.
    """
    import jax

    place = find_place(config)
    if jax.distributed.is_initialized() or (place is None and not detectable()):
        return
    if place is not None and place.processes == 1:
        return
    # Ignored by all platforms but the CPU, which has no collectives across processes of its own.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    known = {} if place is None else {
        "coordinator_address": place.coordinator,
        "num_processes": place.processes,
        "process_id": place.process,
    }  # fmt: skip
    try:
        jax.distributed.initialize(
            **known,
            initialization_timeout=JOIN_SECONDS,
            heartbeat_timeout_seconds=config.heartbeat,
        )
    except (RuntimeError, ValueError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        where = place.coordinator if place else "found by JAX on this cluster"
        raise UserError(
            f"mesh.coordinator: the processes of this run ({where}) did not come together: "
            f"{first}. "
            "Start the same command on every host, with the same coordinator, and look whether its "
            "port can be reached."
        ) from error
    if jax.process_count() > 1:
        writers.join(jax.process_index() == 0, _meet, _any_of)


def leave(status: int) -> int:
    """The exit status of a process that failed, once no other has to wait for it.

    Where all of them fail alike (a wrong flag), they end together. Where only this one does, it
    ends here and now: JAX's orderly end would wait for processes that wait for this one.
    """
    if not writers.several():
        return status
    from jax._src.distributed import global_state  # JAX has no public barrier with a time limit

    try:
        global_state.client.wait_at_barrier("malt leaves", 1000 * LEAVE_SECONDS)
    except Exception:  # the others are elsewhere, or gone
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


def another_gone(error: Exception) -> str | None:
    """A sentence, where an error only means that another process of the run has ended.

    So it is where processes talk by gloo (CPUs); elsewhere JAX's heartbeat ends this one.
    """
    if not writers.several() or "Gloo" not in str(error):
        return None
    return (
        "another process of this run has ended, so this one ends too; what that one said last says "
        "why. Nothing finished is lost: start the same command on every host again. "
        f"({str(error).splitlines()[0]})"
    )


def _meet(place: str) -> None:
    """Waits until every process of the run is at this place; refuses one that is elsewhere."""
    from jax.experimental import multihost_utils

    multihost_utils.sync_global_devices(place)


def _any_of(flag: bool) -> bool:
    """Whether any process's flag is set."""
    import numpy as np
    from jax.experimental import multihost_utils

    return bool(np.any(multihost_utils.process_allgather(np.array(flag))))


def _number(field: int | None, name: str, env: Mapping[str, str]) -> int | None:
    if field is not None:
        return field
    text = env.get(name)
    if not text:
        return None
    number = whole_number(text)
    if number is None:
        raise UserError(f"{name}: found {show(text)}, allowed: a whole number.")
    return number
