"""Interrupts a run at random moments, lets it go on, and compares it with an undisturbed one.

    python scripts/reliability_kills.py --kills 100 -- \
        malt run --config configs/quickstart.yaml --output-dir {run}

`{run}` is replaced by a fresh folder. The command is first run undisturbed; then again and again,
each time ended by `--signal` after a random while, until it has been ended `--kills` times and has
finished. Expected: every resumed run ends with the same trees, data, draws and exported weights,
byte for byte, and (for TERM and INT) every interruption exits as documented. Prints one line an
interruption and a table; exits 1 if anything differs.
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

COMPARED = ["rounds/**/*.jsonl", "eval/*.jsonl", "export/**/*.safetensors"]
DOCUMENTED = {"KILL": -9, "TERM": 143, "INT": 130}


def contents(run: Path) -> dict[str, bytes]:
    files = {path for pattern in COMPARED for path in run.glob(pattern)}
    return {str(path.relative_to(run)): path.read_bytes() for path in sorted(files)}


def stage_owed(run: Path) -> str:
    """What the run was doing: after the last stage its manifest calls done."""
    try:
        stages = json.loads((run / "manifest.json").read_bytes())["stages"]
    except FileNotFoundError:
        return "opening"
    done = [name for name, stage in stages.items() if stage["done"]]
    return f"after {done[-1]}" if done else "first stage"


def start(command: list[str], run: Path) -> subprocess.Popen:
    command = [part.replace("{run}", str(run)) for part in command]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--signal", choices=list(DOCUMENTED), default="KILL")
    parser.add_argument("--longest", type=float, help="seconds until a kill, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()
    generator = random.Random(options.seed)
    work = Path(tempfile.mkdtemp(prefix="malt-kills-"))

    began = time.monotonic()
    reference = start(options.command, work / "undisturbed")
    errors = reference.communicate()[1]
    whole = time.monotonic() - began
    if reference.returncode != 0:
        print(f"the undisturbed run failed with {reference.returncode}:\n{errors}")
        return 1
    expected = contents(work / "undisturbed")
    print(f"undisturbed: {whole:.1f} s, {len(expected)} files compared")

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
            child.wait(None if enough else generator.uniform(0, longest))
        except subprocess.TimeoutExpired:
            child.send_signal(number)
            told = time.monotonic()
            errors = child.communicate()[1]
            slowest = max(slowest, time.monotonic() - told)
            unheard = child.returncode == -number or errors.endswith("KeyboardInterrupt\n")
            if child.returncode in (DOCUMENTED[options.signal], 0):  # 0: it had just ended
                pass
            elif unheard:  # Python was still starting: no handler yet, and nothing to save
                early += 1
            else:
                wrong.append(f"attempt {attempt}: exit {child.returncode}: {errors[-300:]}")
            kills[stage_owed(run)] += 1
            print(f"{sum(kills.values()):4} {stage_owed(run)}: exit {child.returncode}", flush=True)
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
    for stage, count in sorted(kills.items()):
        print(f"| {stage} | {count} |")
    print(f"| all | {sum(kills.values())} |")
    print(f"\n{finished} runs finished; slowest answer to the signal: {slowest:.2f} s")
    print(f"{early} signals came before the command could handle them")
    print("\n".join(wrong) or "every run ended with the bytes of the undisturbed one")
    shutil.rmtree(work)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
