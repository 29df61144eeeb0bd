"""Checks that several processes on this machine make the same run as one process.

    python scripts/pods.py same --shapes 2x2 4x2 -- --config configs/quickstart.yaml SMALLER
    python scripts/pods.py meshes -- --config configs/quickstart.yaml SMALLER
    python scripts/pods.py kill --shapes 4x2 -- --config configs/quickstart.yaml SMALLER
    python scripts/pods.py term --shapes 2x2 -- --config configs/quickstart.yaml SMALLER
    python scripts/pods.py term --shapes 4x2 --then 2x1 -- --config configs/quickstart.yaml SMALLER

After `--` come the words of `malt run` without `--output-dir`. SMALLER stands for
`--task.num-train 24 --task.num-eval 8 --search.block 4 --eval.trees 4`. Shape 4x2 means four
processes, which talk by gloo, with two fake devices each.

`same` and `meshes` compare every stage with a run of one process on one device: trees (except the
last digits of log-probabilities), training data, losses, predictions and exported weights. `kill`
sends SIGKILL to one process during the search and during training, and `term` sends SIGTERM. All
processes must end within 150 seconds, and the same command must then produce the bytes of an
undisturbed run. With `--then` the run continues in another shape and is compared as by `same`.
Prints a table and exits with 1 if anything differs. docs/scaling.md has the results.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

MESHES = {
    "data=8": ("--mesh.data", "8"),
    "fsdp=8": ("--mesh.fsdp", "8"),
    "fsdp=4 x tensor=2": ("--mesh.fsdp", "4", "--mesh.tensor", "2"),
}
LOSS, LOGPROB, WEIGHT = 1e-5, 1e-4, 1e-3
"""Largest differences allowed between a run on one device and one on several. Weights, relative to
the largest, differ most: a step of Adam depends on the sign of gradients that are nearly 0."""
PATIENCE = 150
"""Seconds in which all processes must end after one of them: JAX's heartbeat and some more."""


@dataclass
class Process:
    """One process of a run and the file of its output."""

    popen: subprocess.Popen
    log: Path


def start(words: list[str], run: Path, processes: int = 1, devices: int = 1) -> list[Process]:
    """Starts `malt WORDS --output-dir RUN` as several processes that form one run."""
    command = [sys.executable, "-m", "malt_jax.cli", *words, "--output-dir", str(run)]
    return start_together(command, run, processes, devices)


def start_together(command: list[str], run: Path, processes: int, devices: int) -> list[Process]:
    """Starts a command as processes that find each other; their output goes to RUN.INDEX.log."""
    shared = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
    if processes > 1:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            place = f"127.0.0.1:{probe.getsockname()[1]}"
        shared |= {"MALT_COORDINATOR": place, "MALT_PROCESSES": str(processes)}
    started = []
    for index in range(processes):
        env = shared | ({"MALT_PROCESS": str(index)} if processes > 1 else {})
        log = run.with_name(f"{run.name}.{index}.log")
        with open(log, "a") as file:
            popen = subprocess.Popen(command, env=env, stdout=file, stderr=subprocess.STDOUT)
        started.append(Process(popen, log))
    return started


def wait(pod: list[Process], seconds: float) -> list[int]:
    """The exit status of each process; those that still run after `seconds` are killed (-9)."""
    until = time.monotonic() + seconds
    for process in pod:
        try:
            process.popen.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.popen.kill()
            process.popen.wait()
    return [process.popen.returncode for process in pod]


def whole(words: list[str], run: Path, processes: int = 1, devices: int = 1) -> float:
    """Runs the command to its end and returns the seconds it took."""
    began = time.monotonic()
    pod = start(words, run, processes, devices)
    statuses = wait(pod, 7200)
    if any(statuses):
        first = next(index for index, status in enumerate(statuses) if status)
        sys.exit(f"ended with {statuses}; process {first}:\n{pod[first].log.read_text()[-3000:]}")
    return time.monotonic() - began


def lines(path: Path) -> Iterator[dict]:
    return map(json.loads, path.read_text().splitlines()) if path.exists() else iter(())


def differences(one: Path, other: Path) -> list[str]:
    """What differs between two runs beyond rounding, one phrase per difference."""
    found = []
    trees = sorted(path.relative_to(one) for path in one.glob("rounds/*/trees/*.jsonl"))
    for path in trees:
        pairs = zip(lines(one / path), lines(other / path), strict=True)
        if not all(same_tree(*pair) for pair in pairs):
            found.append(f"trees of {path}")
    if not trees:
        found.append("no trees")
    losses = [
        {
            (r["round"], r["role"], r["phase"], r["step"]): r["loss"]
            for r in lines(run / "metrics.jsonl")
            if r["stage"] == "train"
        }
        for run in (one, other)
    ]
    if losses[0].keys() != losses[1].keys():
        found.append("training steps")
    worst = max((abs(a - losses[1].get(k, 1e9)) for k, a in losses[0].items()), default=0.0)
    if worst > LOSS:
        found.append(f"losses, by {worst:.1e}")
    for path in sorted(one.glob("rounds/*/data/*/*.jsonl")):
        if path.read_bytes() != (other / path.relative_to(one)).read_bytes():
            found.append(f"{path.relative_to(one)}")
    for path in sorted(one.glob("eval/*.jsonl")):
        answers = [
            [(r["question_id"], r["draw"], r["prediction"], r["tokens"]) for r in lines(file)]
            for file in (path, other / path.relative_to(one))
        ]
        if answers[0] != answers[1]:
            unequal = sum(a != b for a, b in zip(*answers, strict=False))
            found.append(f"{path.name}, {unequal} of {len(answers[0])} draws")
    return found + weights(one, other)


def same_tree(one: dict, other: dict) -> bool:
    """Whether two trees are equal except in the last digits of log-probabilities."""
    near = all(
        abs(a - b) <= LOGPROB
        for nodes in zip(one["nodes"], other["nodes"], strict=True)
        for a, b in zip(*(node.pop("logprobs") for node in nodes), strict=True)
    )
    return near and one == other


def weights(one: Path, other: Path) -> list[str]:
    """Exported arrays that differ by more than `WEIGHT` of the largest of their values."""
    import numpy as np
    from safetensors.numpy import load_file

    found = []
    for path in sorted(one.glob("export/*/**/*.safetensors")):
        here, there = load_file(path), load_file(other / path.relative_to(one))
        worst = max(
            np.max(np.abs(here[n] - there[n])) / max(1e-3, np.max(np.abs(here[n]))) for n in here
        )
        if worst > WEIGHT:
            found.append(f"{path.relative_to(one)}, by {worst:.1e}")
    return found


def unequal_bytes(one: Path, other: Path) -> list[str]:
    """Trees, data, draws and exported weights whose bytes differ."""
    patterns = ["rounds/**/*.jsonl", "eval/*.jsonl", "export/**/*.safetensors"]
    names = {p.relative_to(run) for run in (one, other) for q in patterns for p in run.glob(q)}
    return [
        str(name)
        for name in sorted(names)
        if not all((run / name).exists() for run in (one, other))
        or (one / name).read_bytes() != (other / name).read_bytes()
    ]


def searching(run: Path) -> bool:
    """Whether the first block of trees is written, so that the search is under way."""
    return any(run.glob("rounds/000/trees/*.jsonl"))


def training(run: Path) -> bool:
    """Whether the first optimiser step is done."""
    return (run / "metrics.jsonl").exists()


def disturb(
    words: list[str],
    run: Path,
    shape: tuple[int, int],
    moment: Callable[[Path], bool],
    number: int,
    hit: int,
) -> tuple[float, list[int]]:
    """Signals process `hit` at a moment; gives the seconds until all ended, and their statuses."""
    pod = start(words, run, *shape)
    while not moment(run) and all(process.popen.poll() is None for process in pod):
        time.sleep(0.02)
    pod[hit].popen.send_signal(number)
    began = time.monotonic()
    statuses = wait(pod, PATIENCE)
    return time.monotonic() - began, statuses


def compare(words: list[str], work: Path, cases: dict[str, tuple[list[str], int, int]]) -> bool:
    """Compares each case (flags, processes, devices) with one process on one device."""
    print(f"| one process, one device | {whole(words, work / 'alone'):.0f} s | |", flush=True)
    good = True
    for name, (flags, processes, devices) in cases.items():
        run = work / name.replace(" ", "-")
        seconds = whole([*words, *flags], run, processes, devices)
        found = differences(work / "alone", run)
        good = good and not found
        print(f"| {name} | {seconds:.0f} s | {'; '.join(found) or 'the same'} |", flush=True)
    return good


def interrupt(
    words: list[str], work: Path, shape: tuple[int, int], number: int, then: tuple[int, int] | None
) -> bool:
    """Signals the last process during the search, then the first during training; continues."""
    whole(words, work / "undisturbed", *(then or shape))
    check = differences if then else unequal_bytes
    good = True
    for moment, hit in ((searching, shape[0] - 1), (training, 0)):
        run = work / moment.__name__
        seconds, statuses = disturb(words, run, shape, moment, number, hit)
        whole(words, run, *(then or shape))
        found = check(work / "undisturbed", run)
        if number == signal.SIGTERM and statuses != [143] * shape[0]:
            found.append("exit status")
        if seconds >= PATIENCE:
            found.append("not ended in time")
        good = good and not found
        outcome = "; ".join(found) or "as undisturbed"
        row = f"| process {hit}, {moment.__name__} | {seconds:.1f} s | {statuses} | {outcome} |"
        print(row, flush=True)
    return good


def shape(text: str) -> tuple[int, int]:
    """Processes, and devices per process, of a text such as `4x2`."""
    processes, _, devices = text.partition("x")
    return int(processes), int(devices)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("check", choices=["same", "meshes", "kill", "term"])
    parser.add_argument("--shapes", nargs="+", default=["2x2"], help="processes x devices of each")
    parser.add_argument("--then", help="shape to continue in after a signal; default: the same")
    parser.add_argument("--work", type=Path, help="folder for the runs; default: a temporary one")
    parser.add_argument("words", nargs="+")
    options = parser.parse_args()
    words = ["run", *options.words]
    work = options.work or Path(tempfile.mkdtemp(prefix="malt-pods-"))
    work.mkdir(parents=True, exist_ok=True)
    shapes = {name: shape(name) for name in options.shapes}
    if options.check == "meshes":
        good = compare(words, work, {name: ([*flags], 1, 8) for name, flags in MESHES.items()})
    elif options.check == "same":
        good = compare(words, work, {name: ([], *one) for name, one in shapes.items()})
    else:
        number = signal.SIGKILL if options.check == "kill" else signal.SIGTERM
        then = shape(options.then) if options.then else None
        good = all([interrupt(words, work, one, number, then) for one in shapes.values()])
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
