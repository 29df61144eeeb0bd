"""Several processes that work on one run, on JAX's distributed runtime.

Every process runs the same command and computes the same plan, so all of them make the same calls
in the same order. Process 0 writes the run directory; docs/scaling.md says what is shared.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from malt_jax.checks import show, whole_number
from malt_jax.config.mesh import MeshConfig
from malt_jax.errors import Unavailable, UserError, first_line
from malt_jax.hang import Watch
from malt_jax.storage import writers

COORDINATOR, PROCESSES, PROCESS = "MALT_COORDINATOR", "MALT_PROCESSES", "MALT_PROCESS"

JOIN_SECONDS = 300
"""How long process 0 waits for the others to connect."""
SHUTDOWN_SECONDS = 6 * 3600
"""How long processes that are done wait for those that are not."""
LEAVE_SECONDS = 10
"""How long a process that failed waits for the others to fail as well."""
GONE = ("Gloo", "heartbeat timeout", "task is set to ERROR")
"""What errors say of a process that has ended or does not answer."""


@dataclass(frozen=True)
class Place:
    """Which of the run's processes this one is, and where process 0 can be reached."""

    coordinator: str
    """host:port of process 0."""
    processes: int
    process: int


def find_place(config: MeshConfig, env: Mapping[str, str] = os.environ) -> Place | None:
    """The place given by fields of `mesh` or, second, by MALT_* variables; None if by neither.

    Raises UserError if only a part of it is given or a number is out of range.
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
    # At the last colon, because an IPv6 address has colons of its own.
    host, _, port = place.coordinator.rpartition(":")
    if not host or not 1 <= (whole_number(port) or 0) <= 65535:
        raise UserError(
            f"mesh.coordinator: found {show(place.coordinator)}, allowed: host:port, as "
            "10.0.0.1:1234."
        )
    return place


def detectable(env: Mapping[str, str] = os.environ) -> bool:
    """Whether JAX can find the run's processes by itself: on Slurm, GKE and Cloud TPU."""
    if env.get("SLURM_JOB_ID") and (_number(None, "SLURM_NTASKS", env) or 1) > 1:
        return True
    if "," in env.get("TPU_WORKER_HOSTNAMES", "") or "MEGASCALE_COORDINATOR_ADDRESS" in env:
        return True
    # A TPU's device file counts unless JAX was told to use something else.
    chips = any(Path(path).exists() for path in ("/dev/accel0", "/dev/vfio/0"))
    return chips and env.get("JAX_PLATFORMS", "tpu").startswith("tpu")


def initialize(config: MeshConfig) -> None:
    """Connects this process to the others of the run; does nothing if it is the only one.

    Call it before JAX is first used. When a process dies, JAX's heartbeat ends the others after at
    most `mesh.heartbeat` seconds, with a message that names the one that is gone. When one hangs,
    all end after `mesh.hang` seconds (`hang.py`). Raises Unavailable if the others do not connect.
    """
    import jax

    place = find_place(config)
    if jax.distributed.is_initialized() or (place is None and not detectable()):
        return
    if place is not None and place.processes == 1:
        return
    # Only the CPU needs this, because it has no collectives across processes of its own.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    known: dict[str, Any] = {} if place is None else {
        "coordinator_address": place.coordinator,
        "num_processes": place.processes,
        "process_id": place.process,
    }  # fmt: skip
    try:
        # Without the three known values JAX asks the cluster for them.
        jax.distributed.initialize(
            **known,
            initialization_timeout=JOIN_SECONDS,
            heartbeat_timeout_seconds=config.heartbeat,
            # At the end the others wait here for process 0, which may still copy to a mirror.
            shutdown_timeout_seconds=SHUTDOWN_SECONDS,
        )
    except (RuntimeError, ValueError) as error:
        where = place.coordinator if place else "found by JAX on this cluster"
        kind = UserError if isinstance(error, ValueError) else Unavailable
        raise kind(
            f"mesh.coordinator: the processes of this run ({where}) could not connect: "
            f"{first_line(error)}. Start the same command on every host, with the same "
            "coordinator, and check that its port can be reached."
        ) from error
    # A cluster may have given this run a single process, which has nobody to wait for.
    if jax.process_count() > 1:
        process, client = jax.process_index(), _client()
        watch = Watch(client, process, jax.process_count(), config.hang)
        writers.join(process == 0, partial(_meet, watch), partial(_any_of, watch))
        if config.hang:
            watch.start()


def leave(status: int) -> int:
    """Ends a process that failed without blocking the others; returns its exit status.

    If all processes fail alike, for example because of a wrong flag, they end together. If only
    this one fails, it ends at once, because JAX's shutdown would wait for processes that wait for
    this one.
    """
    if not writers.several():
        return status
    try:
        # The limit is in milliseconds.
        _client().wait_at_barrier("malt leaves", 1000 * LEAVE_SECONDS)
    except Exception:  # the others do something else, or are gone
        # `os._exit` runs no exit handlers, where JAX would wait, and writes out no buffers.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


def another_gone(error: Exception) -> str | None:
    """A sentence if an error means that another process of the run has ended, else None.

    Either gloo says so, by which CPUs communicate, or a barrier of JAX's, as Orbax waits at.
    Elsewhere the heartbeat ends the process.
    """
    text = str(error)
    if not writers.several() or not any(sign in text for sign in GONE):
        return None
    silent = re.search(r"Task (\d+) heartbeat timeout", text)
    which = f"process {silent[1]} of this run" if silent else "another process of this run"
    return (
        f"{which} has ended or no longer answers, so this one ends too; its last message may say "
        "why. No finished work is lost: start the same command on every host again. "
        f"({text.splitlines()[0]})"
    )


def _client() -> Any:
    """The client of JAX's coordination service."""
    # Private, because the public API has neither its key-value store nor barriers with a limit.
    from jax._src.distributed import global_state

    return global_state.client


def _meet(watch: Watch, place: str) -> None:
    """Waits until every process of the run has reached this place in the program."""
    from jax.experimental import multihost_utils

    # JAX compares the names of the places and raises an error where they differ.
    with watch.waiting(place):
        multihost_utils.sync_global_devices(place)


def _any_of(watch: Watch, flag: bool, place: str, patient: bool) -> bool:
    """Whether the flag is set in any process."""
    import numpy as np
    from jax.experimental import multihost_utils

    with watch.waiting(place, patient):
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
