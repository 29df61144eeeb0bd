"""Damages a copy of a finished run at random and checks that the damage is refused by name.

    python scripts/reliability_damage.py RUN -- malt run --config RUN/config.yaml --output-dir {run}

`{run}` is replaced by the copy. Every damage (a flipped bit, a cut, an addition, a deletion) hits
one file that the manifest covers, or the manifest or config themselves; the command must then exit
2, name that file and leave everything as it is. Prints a table; exits 1 if any damage passed.
"""

import argparse
import collections
import json
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

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

    sealed = json.loads((copy / "manifest.json").read_bytes())["artefacts"]
    victims = [*sorted(sealed), "manifest.json", "config.yaml"]
    tried, refused, passed = collections.Counter(), collections.Counter(), []
    for _ in range(options.damages):
        name, kind = generator.choice(victims), generator.choice(KINDS)
        damage(copy / name, kind, generator)
        answer = subprocess.run(command, capture_output=True, text=True)
        place = name.split("/")[0]
        tried[place, kind] += 1
        if answer.returncode == 2 and name in answer.stderr and "Traceback" not in answer.stderr:
            refused[place, kind] += 1
        else:
            passed.append(f"{kind} of {name}: exit {answer.returncode}: {answer.stderr[-300:]}")
        shutil.copy2(options.run / name, copy / name)
    answer = subprocess.run(command, capture_output=True, text=True)
    if answer.returncode != 0:
        passed.append(f"the mended copy was refused too: {answer.stderr[-300:]}")

    print("| damaged | kind | refused by name |\n| --- | --- | --- |")
    for place, kind in sorted(tried):
        print(f"| {place} | {kind} | {refused[place, kind]} of {tried[place, kind]} |")
    print(f"| all | | {sum(refused.values())} of {sum(tried.values())} |")
    print("\n".join(passed) or "\nthe mended copy was accepted")
    shutil.rmtree(work)
    return 1 if passed else 0


if __name__ == "__main__":
    sys.exit(main())
