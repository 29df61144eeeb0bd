"""Memory of the process and its devices: the peak, and freed memory given back."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import resource
from pathlib import Path

CONTROL_GROUP = Path("/sys/fs/cgroup")
"""Where the kernel shows the limits of this process's control group, such as a container's."""


def number_in(path: str | Path) -> int | None:
    """The number that a file of the kernel begins with; None where there is none."""
    try:
        return int(Path(path).read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return None


def host_memory() -> int:
    """Bytes of memory of this machine, or of this process's control group if that has less."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(machine, number_in(CONTROL_GROUP / "memory.max") or machine)


def free_memory() -> int | None:
    """Bytes this process may still take: of the machine, its control group and its limits."""
    bounds = []
    found = _numbers("/proc/meminfo")
    if "MemAvailable:" in found:
        # The kernel writes these numbers in KiB.
        bounds.append(1024 * (found["MemAvailable:"] + found.get("SwapFree:", 0)))
    limit, used = (number_in(CONTROL_GROUP / f"memory.{name}") for name in ("max", "current"))
    if limit is not None and used is not None:
        # The group's use includes cached files, which the kernel drops when memory is needed.
        cached = _numbers(CONTROL_GROUP / "memory.stat").get("inactive_file", 0)
        bounds.append(limit - used + cached)
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    # This limit counts addresses, so it is compared with all mapped pages, resident or not.
    pages = number_in("/proc/self/statm")
    if limit != resource.RLIM_INFINITY and pages is not None:
        bounds.append(limit - pages * os.sysconf("SC_PAGE_SIZE"))
    return max(0, min(bounds)) if bounds else None


def _numbers(path: str | Path) -> dict[str, int]:
    """The numbers by name in a file of the kernel with lines `name number ...`."""
    try:
        lines = [line.split() for line in Path(path).read_text().splitlines()]
    except OSError:
        return {}
    return {words[0]: int(words[1]) for words in lines if len(words) > 1 and words[1].isdecimal()}


def peak_bytes() -> int:
    """The most memory in use so far: of the first device, or of this process on a CPU.

    That of the process is the most since the last call of `restart_peak`.
    """
    import jax

    stats = jax.local_devices()[0].memory_stats() or {}
    peak = stats.get("peak_bytes_in_use")
    # `ru_maxrss` is in KiB, and the shift by 10 bits makes bytes of it.
    return peak or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def restart_peak() -> None:
    """Begins to measure the peak of this process anew, where the system can (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # 5: the resident set's highest mark


def release_freed() -> None:
    """Returns freed memory that the C library holds to the system, where it can (glibc).

    Compiling and computing on a CPU free gigabytes in pieces that glibc keeps for later: a process
    that had searched was seen with six times its live arrays resident.
    """
    # Only glibc has this function; elsewhere nothing is done.
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


@functools.cache
def release_after_compiling() -> None:
    """Returns what the compiler has freed whenever JAX has compiled a program that took long.

    Otherwise it stays resident beside the temporaries of the program that then runs: without it the
    peak of training a model of 30 layers was almost a gigabyte higher (docs/cost.md).
    """
    import jax

    def note(event: str, duration_secs: float, **_: str | int) -> None:
        if event.endswith("backend_compile_duration") and duration_secs > LONG_COMPILE:
            release_freed()

    jax.monitoring.register_event_duration_secs_listener(note)


def release_programs() -> None:
    """Drops JAX's compiled programs if a CPU process holds `SPARE_MEMORY` besides its arrays.

    A compiled training step of a model of 30 layers holds almost a gigabyte for as long as JAX
    keeps it, and each phase compiles its own. What is needed again is compiled again, or read from
    the compilation cache.
    """
    import jax

    if jax.default_backend() != "cpu" or (resident := _resident()) is None:
        return
    arrays = sum(array.nbytes for array in jax.live_arrays())
    if resident - arrays > SPARE_MEMORY:
        jax.clear_caches()
        release_freed()


def _resident() -> int | None:
    """Bytes of this process in memory; None where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


SPARE_MEMORY = 1 << 30
"""Bytes besides arrays; Python and JAX themselves take 0.3 to 0.4 GB."""
LONG_COMPILE = 1.0
"""Seconds; programs that take less leave little, and a process may compile thousands of them."""
