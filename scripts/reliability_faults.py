"""Disturbs a supervised run of several processes, and compares it with an undisturbed one.

    python tests/tiny.py tiny
    PYTHONPATH=tests python scripts/reliability_faults.py -- run --config tiny/config.yaml

After `--` come the words of `malt` without `--output-dir`. The run is made by
scripts/launch/supervise.py with `--processes` [4] processes, which restarts it without help. At
random moments, `--faults` [30] times, a random process meets one of four faults: SIGKILL, SIGTERM,
SIGSTOP (it hangs and still holds its connections) or `cut`: every process has a network namespace
of its own (needs root) and the interface of one goes down. Search, SFT, DPO and evaluation meet
equal shares of the faults, if they last long enough. When the run is done, its files are
compared byte for byte; `--minutes` limits the whole.

Prints a row per fault: what the run was doing, the seconds until all processes had ended, and the
seconds until the run had finished something new, which is the time lost. Exits 1 if a file differs,
or if the run did not end by itself.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent / "launch")]
import supervise  # noqa: E402
from pods import unequal_bytes  # noqa: E402
from reliability_kills import at_work_on, stages  # noqa: E402
from reliability_kills import kind as stage_kind  # noqa: E402

FAULTS = ("KILL", "TERM", "STOP", "cut")
DISTURBED = {"search", "sft", "dpo", "eval"}
"""Stages long enough to meet faults; each meets at most its share of them."""
HEARTBEAT, GRACE = 20, 45
"""Seconds until a process that does not answer is given up, and until it is killed."""


class Networks:
    """A network namespace for each process, joined by a bridge; needs root and `ip`."""

    def __init__(self, processes: int):
        self.names = [f"malt{os.getpid()}-{index}" for index in range(processes)]
        self.bridge = f"mb{os.getpid()}"
        self.addresses = [f"10.213.7.{index + 1}" for index in range(processes)]

    def __enter__(self) -> Networks:
        ip("link", "add", self.bridge, "type", "bridge")
        ip("link", "set", self.bridge, "up")
        for index, (name, address) in enumerate(zip(self.names, self.addresses, strict=True)):
            outer = f"mv{os.getpid()}{index}"[-15:]
            ip("netns", "add", name)
            # Gloo listens where the machine's own name leads, and `ip netns exec` shows this file.
            hosts = Path("/etc/netns", name, "hosts")
            hosts.parent.mkdir(parents=True)
            hosts.write_text(f"127.0.0.1 localhost\n{address} {socket.gethostname()}\n")
            ip("link", "add", outer, "type", "veth", "peer", "name", "eth0", "netns", name)
            ip("link", "set", outer, "master", self.bridge, "up")
            ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                ip("-n", name, "link", "set", device, "up")
        return self

    def __exit__(self, *_: object) -> None:
        for name in self.names:
            ip("netns", "del", name)
            shutil.rmtree(Path("/etc/netns", name))
        ip("link", "del", self.bridge)

    def set(self, process: int, state: str) -> None:
        ip("-n", self.names[process], "link", "set", "eth0", state)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


class Pods:
    """Starts the processes for the supervisor, and knows the ones that run now."""

    def __init__(self, networks: Networks | None):
        self.networks, self.pod, self.started = networks, [], 0

    def start(self, command: list[str], processes: int) -> list[subprocess.Popen]:
        if self.networks is None:
            self.pod = begin(command, processes)
        else:
            place = f"{self.networks.addresses[0]}:{random.randint(20000, 40000)}"
            shared = {"MALT_COORDINATOR": place, "MALT_PROCESSES": str(processes)}
            pod = []
            for index, name in enumerate(self.networks.names):
                self.networks.set(index, "up")
                env = {**os.environ, **shared, "MALT_PROCESS": str(index)}
                pod.append(subprocess.Popen(["ip", "netns", "exec", name, *command], env=env))
            self.pod = pod
        self.started += 1
        return self.pod


begin = supervise.start


def disturb(pods: Pods, run: Path, order: list[str], options: argparse.Namespace) -> list[tuple]:
    """Injects the faults while the run goes on; returns a row for each."""
    generator, rows = random.Random(options.seed), []
    kinds = FAULTS if pods.networks else FAULTS[:-1]
    most = math.ceil(options.faults / max(1, len({*map(stage_kind, order)} & DISTURBED)))
    while len(rows) < options.faults and not pods.ended:
        # Only once the run has come further, so that every fault finds it at work.
        wait_for(lambda: bool(supervise.done_so_far(run)), pods)
        time.sleep(generator.uniform(*options.every))
        if pods.ended or any(process.poll() is not None for process in pods.pod):
            continue
        doing = at_work_on(run, order, 0.0)[0]
        if sum(stage_kind(row[2]) == stage_kind(doing) for row in rows) >= most:
            continue
        hit, kind = generator.randrange(len(pods.pod)), kinds[len(rows) % len(kinds)]
        began, before, started = time.monotonic(), supervise.done_so_far(run), pods.started
        victim = pods.pod[hit]
        if kind == "cut":
            pods.networks.set(hit, "down")
        else:
            victim.send_signal(getattr(signal, f"SIG{kind}"))
        old = pods.pod
        wait_for(lambda old=old: all(p.poll() is not None for p in old), pods)
        ended = time.monotonic() - began
        wait_for(lambda before=before: bool(supervise.done_so_far(run) - before), pods)
        lost = time.monotonic() - began
        rows.append((kind, hit, doing, ended, lost))
        print(
            f"| {kind} | {hit} | {doing} | {ended:.1f} | {lost:.1f} | {pods.started - started} |",
            flush=True,
        )
    return rows


def wait_for(holds, pods: Pods) -> None:
    while not holds() and not pods.ended:
        time.sleep(0.1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--faults", type=int, default=30)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--minutes", type=float, default=120)
    parser.add_argument("--every", type=float, nargs=2, default=(2, 20), help="pause, s [2 20]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-network", action="store_true", help="no namespaces, and no `cut`")
    parser.add_argument("words", nargs="+")
    options = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"
    for number in (signal.SIGTERM, signal.SIGINT):  # the processes are not left behind
        signal.signal(number, lambda number, _: supervise.stopping.append(number))
    work = Path(tempfile.mkdtemp(prefix="malt-faults-"))
    command = [sys.executable, "-m", "malt_jax.cli", *options.words, "--quiet"]
    command += ["--mesh.heartbeat", str(HEARTBEAT), "--output-dir"]

    def whole(run: Path) -> tuple[int, float]:
        began = time.monotonic()
        status = supervise.supervise(
            [*command, str(run)], run, options.processes, stalled=20, grace=GRACE
        )
        return status, time.monotonic() - began

    status, undisturbed = whole(work / "undisturbed")
    if status:
        return status
    print(f"undisturbed: {undisturbed:.0f} s\n", flush=True)
    print("| fault | process | during | all ended, s | new work, s | restarts |")
    print("| --- | ---: | --- | ---: | ---: | ---: |", flush=True)
    with Networks(options.processes) if not options.no_network else Nothing() as networks:
        pods = Pods(networks)
        pods.ended = False
        supervise.start = pods.start
        rows: list[tuple] = []
        order = list(stages(work / "undisturbed"))

        def faults() -> None:
            rows.extend(disturb(pods, work / "disturbed", order, options))

        thread = threading.Thread(target=faults, daemon=True)
        limit = threading.Timer(60 * options.minutes, lambda: supervise.stopping.append(15))
        for started in (thread, limit):
            started.daemon = True
            started.start()
        status, seconds = whole(work / "disturbed")
        pods.ended = True
        limit.cancel()
        thread.join(30)
    differ = unequal_bytes(work / "undisturbed", work / "disturbed") if status == 0 else []
    print(f"\n{len(rows)} faults; ended with {status} after {seconds:.0f} s")
    if rows:
        lost, median = (seconds - undisturbed) / len(rows), statistics.median(r[4] for r in rows)
        print(f"time lost per fault: {lost:.1f} s; median until new work: {median:.1f} s")
    if status == 0:
        print("\n".join(differ) or "the same bytes as the undisturbed run")
    return 1 if status or differ else 0


class Nothing:
    """No namespaces."""

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


if __name__ == "__main__":
    sys.exit(main())
