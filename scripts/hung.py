"""Measures how soon a run names a process that hangs.

    python scripts/hung.py --hang 10

Two processes without a model exchange flags by gloo. Then one of them hangs: it sleeps, computes
for ever, or keeps the interpreter's lock, so that no other thread of it runs either. Prints the
seconds from there to the sentence of the other and to the end of each, and the exit statuses.
docs/reliability.md has the results.
"""

import argparse
import ctypes
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pods

KINDS = ("sleep", "compute", "lock")
HEARTBEAT = 20
PATIENCE = 120
"""Seconds beyond the limit after which what still runs is killed."""


@dataclass
class Watched(pods.Process):
    """One process of the run, as it is seen from outside; times in seconds since one hung."""

    named: float | None = None
    """When it said which process hangs."""
    ended: float | None = None


def work(kind: str, hung: int, hang: int) -> None:
    """What one process does; it never returns."""
    from malt_jax import distributed
    from malt_jax.config.mesh import MeshConfig
    from malt_jax.storage import writers

    distributed.initialize(MeshConfig(heartbeat=HEARTBEAT, hang=hang))
    writers.wait_for_all("begin")
    for _ in range(10):
        writers.any_of(False, "safe point")
    if os.environ[distributed.PROCESS] == str(hung):
        print("hangs now", flush=True)
        stand_still(kind)
    writers.any_of(False, "safe point")


def stand_still(kind: str) -> None:
    if kind == "sleep":
        time.sleep(3600)
    while kind == "compute":
        pass
    ctypes.PyDLL(None).sleep(3600)  # unlike `CDLL`, it keeps the lock during the call


def measure(kind: str, hung: int, hang: int, folder: Path) -> list[Watched]:
    """Starts a run of two processes, of which number `hung` hangs, and watches it to its end."""
    words = [sys.executable, __file__, "--work", kind, str(hung), str(hang)]
    pod = pods.start_together(words, folder / f"{kind}.{hung}", 2, 1)
    run = [Watched(process.popen, process.log) for process in pod]
    until, began = time.monotonic() + hang + PATIENCE, 0.0
    while any(process.ended is None for process in run):
        time.sleep(0.05)
        now = time.monotonic()
        if not began and "hangs now" in run[hung].log.read_text():
            began = now
        for process in run:
            if process.named is None and f"malt: process {hung}" in process.log.read_text():
                process.named = now - began
            if process.ended is None and process.popen.poll() is not None:
                process.ended = now - began
            if now > until:
                process.popen.kill()
    return run


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--hang", type=int, default=10, help="mesh.hang of the run [10]")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        kind, hung, hang = options.work
        work(kind, int(hung), int(hang))
    print("| kind | hung | named by the other after | ended after | statuses |", flush=True)
    print("| --- | --- | ---: | ---: | --- |", flush=True)
    good = True
    with tempfile.TemporaryDirectory(prefix="malt-hung-") as folder:
        for kind in options.kinds:
            for hung in (1, 0):
                run = measure(kind, hung, options.hang, Path(folder))
                named, statuses = run[1 - hung].named, [one.popen.returncode for one in run]
                good = good and named is not None
                ended = ", ".join(f"{process.ended:.1f} s" for process in run)
                seconds = "never" if named is None else f"{named:.1f} s"
                row = f"| {kind} | process {hung} | {seconds} | {ended} | {statuses} |"
                print(row, flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
