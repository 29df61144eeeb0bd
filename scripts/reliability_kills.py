"""Interrupts a run at random moments, lets it go on, and compares it with an undisturbed one.

    python tests/tiny.py tiny
    PYTHONPATH=tests python scripts/reliability_kills.py --kills 100 -- \
        malt run --config tiny/config.yaml --quiet --output-dir {run}

`{run}` is replaced by a fresh folder. The command is first run undisturbed; then again and again,
each time ended by `--signal` at a random moment after it has opened the run, until it has been
ended `--kills` times and has finished. TERM and INT are sent twice: the second must change nothing.
Expected: every resumed run ends with the same trees, data, reference log-probabilities, draws and
exports, byte for byte, and (for TERM and INT) every interruption exits as documented. Prints one
line an interruption and a table; exits 1 if anything differs. `--during label export report` waits
for these short stages, which a random moment seldom hits.
"""

import argparse
import collections
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

COMPARED = ("rounds/**/*", "checkpoints/**/references.npz", "eval/**/*", "export/**/*")
DOCUMENTED = {"KILL": -9, "TERM": 143, "INT": 130}


def contents(run: Path) -> dict[str, bytes]:
    files = {path for pattern in COMPARED for path in run.glob(pattern) if path.is_file()}
    return {str(path.relative_to(run)): path.read_bytes() for path in sorted(files)}


def stages(run: Path) -> dict[str, bool]:
    """{stage: whether it is done} in the order they were begun."""
    try:
        listed = json.loads((run / "manifest.json").read_bytes())["stages"]
    except FileNotFoundError:
        return {}
    return {name: stage["done"] for name, stage in listed.items()}


def stage_owed(run: Path, order: list[str]) -> str:
    """What the run was doing: the first stage that is not done."""
    if not (run / "manifest.json").exists():
        return "opening"
    done = {name for name, finished in stages(run).items() if finished}
    return next((name for name in order if name not in done), "closing")


def start(command: list[str], run: Path) -> subprocess.Popen:
    command = [part.replace("{run}", str(run)) for part in command]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def wait_until_open(child: subprocess.Popen, run: Path) -> None:
    """Returns when the process holds the run's lock, or has ended."""
    while child.poll() is None:
        try:
            if json.loads((run / ".lock").read_bytes())["pid"] == child.pid:
                return
        except (OSError, ValueError):
            pass
        time.sleep(0.01)


def wait_for_stage(child: subprocess.Popen, run: Path, order: list[str], names: list[str]) -> None:
    """Returns when a stage of one of these names is at work, or the process has ended."""
    while child.poll() is None and stage_owed(run, order).partition("/")[0] not in names:
        time.sleep(0.002)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--signal", choices=list(DOCUMENTED), default="KILL")
    parser.add_argument("--longest", type=float, help="seconds from opening to kill, at most")
    parser.add_argument("--during", nargs="+", default=[], help="stages to interrupt; default: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()
    generator = random.Random(options.seed)
    work = Path(tempfile.mkdtemp(prefix="malt-kills-"))

    reference = start(options.command, work / "undisturbed")
    began = time.monotonic()
    wait_until_open(reference, work / "undisturbed")
    opened = time.monotonic()
    errors = reference.communicate()[1]
    whole = time.monotonic() - opened
    if reference.returncode != 0:
        print(f"the undisturbed run failed with {reference.returncode}:\n{errors}")
        return 1
    expected, order = contents(work / "undisturbed"), list(stages(work / "undisturbed"))
    print(
        f"undisturbed: {opened - began:.1f} s to open, {whole:.1f} s of work, "
        f"{len(expected)} files compared",
        flush=True,
    )

    longest = options.longest or whole
    kills, wrong, finished, attempt = collections.Counter(), [], 0, 0
    slowest, early = 0.0, 0
    number = getattr(signal, f"SIG{options.signal}")
    run = work / "disturbed"
    while True:
        attempt += 1
        child = start(options.command, run)
        enough = sum(kills.values()) >= options.kills
        try:
            if not enough:
                wait_until_open(child, run)
                if options.during:
                    wait_for_stage(child, run, order, options.during)
            child.wait(None if enough else generator.uniform(0, longest))
        except subprocess.TimeoutExpired:
            owed = stage_owed(run, order)
            child.send_signal(number)
            told = time.monotonic()
            if options.signal != "KILL":
                time.sleep(generator.uniform(0, 0.5))
                child.send_signal(number)
            errors = child.communicate()[1]
            took = time.monotonic() - told
            slowest = max(slowest, took)
            unheard = child.returncode == -number or errors.endswith("KeyboardInterrupt\n")
            if child.returncode in (DOCUMENTED[options.signal], 0):  # 0: it had just ended
                pass
            elif unheard:  # Python was still starting: no handler yet, and nothing to save
                early += 1
            else:
                wrong.append(f"attempt {attempt}: exit {child.returncode}: {errors[-300:]}")
            kills[owed] += 1
            print(f"{sum(kills.values()):4} {owed}: exit {child.returncode}, {took:.1f} s")
            sys.stdout.flush()
            continue
        errors = child.communicate()[1]
        if child.returncode != 0:
            wrong.append(f"attempt {attempt} would not go on: {errors[-300:]}")
        found = contents(run)
        wrong += [
            f"run {finished}: {name} differs"
            for name in sorted(expected.keys() | found.keys())
            if expected.get(name) != found.get(name)
        ]
        finished += 1
        shutil.rmtree(run)
        if enough or child.returncode != 0:
            break

    print(f"\n| interrupted while | SIG{options.signal} |\n| --- | --- |")
    for stage in ("opening", *order, "closing"):
        if kills[stage]:
            print(f"| {stage} | {kills[stage]} |")
    print(f"| all | {sum(kills.values())} |")
    print(f"\n{finished} runs finished; slowest answer to the signal: {slowest:.2f} s")
    print(f"{early} signals came before the command could handle them")
    print("\n".join(wrong) or "every run ended with the bytes of the undisturbed one")
    shutil.rmtree(work)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
