"""Damages a copy of a finished run at random and checks that each damage is refused by name.

    python scripts/reliability_damage.py RUN -- malt run --config RUN/config.yaml --output-dir {run}

`{run}` is replaced by the copy. Each damage (a flipped bit, a cut, an addition, a deletion) hits
one random file of the run, except logs, the lock and the manifest's copy; the command must then
exit 2, name that file, say how to repair it, and change nothing. Prints a table; exits 1 if any
damage was accepted.
"""

import argparse
import collections
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

LOGS = ("metrics.jsonl", "tensorboard", ".lock", "manifest.copy.json", "set-aside")
KINDS = ["flip", "flip", "cut", "grow", "delete"]


def damage(path: Path, kind: str, generator: random.Random) -> None:
    data = bytearray(path.read_bytes())
    if kind == "flip" and data:
        data[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
    elif kind == "cut" and data:
        del data[generator.randrange(len(data)) :]
    else:
        data += b"x"
    path.unlink()  # the copy may share its files with the original
    if kind != "delete":
        path.write_bytes(data)


def answer(command: list[str]) -> tuple[int, str]:
    """Exit status and standard error of a command; `malt` runs in this process, which is faster."""
    if command[0] != "malt":
        done = subprocess.run(command, capture_output=True, text=True)
        return done.returncode, done.stderr
    from reliability_inputs import here

    status, _, said = here(command[1:])
    return status, said


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--damages", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()
    generator = random.Random(options.seed)
    work = Path(tempfile.mkdtemp(prefix="malt-damage-", dir=options.run.parent))
    copy = work / "run"
    shutil.copytree(options.run, copy)
    command = [part.replace("{run}", str(copy)) for part in options.command]

    files = sorted(path.relative_to(copy) for path in copy.rglob("*") if path.is_file())
    victims = [str(file) for file in files if file.parts[0] not in LOGS]
    tried, refused, passed = collections.Counter(), collections.Counter(), []
    for _ in range(options.damages):
        name, kind = generator.choice(victims), generator.choice(KINDS)
        damage(copy / name, kind, generator)
        status, said = answer(command)
        place = name.split("/")[0]
        tried[place, kind] += 1
        remedy = "--redo" in said or "restore" in said
        if status == 2 and name in said and remedy and "Traceback" not in said:
            refused[place, kind] += 1
        else:
            passed.append(f"{kind} of {name}: exit {status}: {said[-300:]}")
        shutil.copy2(options.run / name, copy / name)
    status, said = answer(command)
    if status != 0:
        passed.append(f"the repaired copy was refused too: {said[-300:]}")

    print("| damaged | kind | refused by name |\n| --- | --- | --- |")
    for place, kind in sorted(tried):
        print(f"| {place} | {kind} | {refused[place, kind]} of {tried[place, kind]} |")
    print(f"| all | | {sum(refused.values())} of {sum(tried.values())} |")
    print("\n".join(passed) or "\nthe repaired copy was accepted")
    shutil.rmtree(work)
    return 1 if passed else 0


if __name__ == "__main__":
    sys.exit(main())
