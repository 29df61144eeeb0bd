"""Runs the whole method over 10,000 questions in one process, and measures what grows.

    python scripts/reliability_long.py [--questions 10000] [--rounds 3]

Uses the embedded model and task, with trees of 2 + 4 + 8 nodes and 300 steps per phase. Prints a
row per stage, measured after each unit of work (a block of questions, a step): memory in its last
quarter, and divided by that in its second; open files, threads and compiled programs that are held
at its end. Then a row per round with the peaks. Expected: memory grows by less than 2% in a stage,
and has no more files or threads at its end than after its fifth unit, a search no more programs
either; and rounds from the third on have peaks of at most 5% more than the second. The first has
less, because it searches without adapters. Then the first round's search is repeated in ten
processes, one after the other, which must give the same bytes of trees. Exits 1 otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

WARM_UP, MAY_GROW = 5, 1.02
ROUNDS_MAY_DIFFER = 1.05
CONFIG = """
task: {num_eval: 2000}
pipeline:
  roles:
    - {name: generator, branch: 2, temperature: 1.0, max_new_tokens: 8, train: sft}
    - {name: verifier, branch: 2, temperature: 1.0, max_new_tokens: 40, answers: false}
    - {name: refiner, branch: 2, temperature: 1.0, max_new_tokens: 8}
sampler: {prefix_buckets: [64], new_token_buckets: [8, 40]}
search: {block: 200}
train:
  sft: {batch_size: 32, optim: {learning_rate: 1.0e-3}, loop: {max_length: 96, steps: 300}}
  dpo: {batch_size: 16, optim: {learning_rate: 2.0e-4}, loop: {max_length: 96, steps: 300}}
eval: {systems: [sa, ma, malt], block: 200, trees: 0}
"""
COUNTS = ("files", "threads", "programs")


def usage() -> dict[str, float]:
    """What the process holds now."""
    import jax

    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "memory": pages * os.sysconf("SC_PAGE_SIZE") / 1e6,
        "files": len(os.listdir("/proc/self/fd")),
        "threads": len(os.listdir("/proc/self/task")),
        "programs": len(jax.devices()[0].client.live_executables()),
    }


def work(folder: Path, fields: list[str], blocks: int) -> None:
    """Makes the whole run, or searches `blocks` blocks; prints a JSON line after every unit."""
    from malt_jax import config as configs
    from malt_jax.config import reading
    from malt_jax.progress import Progress
    from malt_jax.stages.run import run as whole
    from malt_jax.stages.search import search
    from malt_jax.stages.session import Session
    from malt_jax.storage.rundir import RunDir

    class Watch(Progress):
        units = 0

        def update(self, stage: str, *_, **__) -> None:
            print(json.dumps({"stage": stage, **usage()}), flush=True)
            self.units += 1
            if self.units == blocks:
                sys.exit()

    config = configs.load(str(folder / "config.yaml"), fields)
    with RunDir.open(folder / "run", reading.to_dict(config), "reliability_long") as run:
        session = Session(config, run, Watch(quiet=True))
        search(session, 0) if blocks else whole(session)


def worker(folder: Path, options: argparse.Namespace, blocks: int = 0) -> list[dict]:
    """The lines of a process that works on the run in the folder."""
    fields = ["--task.num-train", options.questions, "--rounds", options.rounds]
    command = [sys.executable, __file__, "--worker", folder, "--blocks", blocks, "--", *fields]
    done = subprocess.run(map(str, command), stdout=subprocess.PIPE, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"stage"')]


def begun(place: Path) -> Path:
    place.mkdir()
    (place / "config.yaml").write_text(CONFIG)
    return place


def trees(folder: Path) -> bytes:
    return b"".join(p.read_bytes() for p in sorted(folder.glob("run/rounds/000/trees/*.jsonl")))


def judged(seen: list[dict]) -> list[str]:
    """Prints the table; returns a sentence for everything that grew."""
    stages: dict[str, list[dict]] = {}
    for line in seen:
        stages.setdefault(line["stage"], []).append(line)
    print("| stage | units | memory, MB | grew | open files | threads | compiled programs |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    wrong, most = [], {}
    for stage, units in stages.items():
        quarter = -(-len(units) // 4)
        early, late = units[quarter : 2 * quarter] or units, units[-quarter:]
        grown = mean(late) / mean(early)
        warm, last = units[min(WARM_UP, len(units)) - 1], units[-1]
        counts = " | ".join(f"{last[name]:.0f}" for name in COUNTS)
        print(f"| {stage} | {len(units):,} | {mean(late):,.0f} | {grown:.3f} | {counts} |")
        wrong += [f"{stage}: memory" for _ in range(grown > MAY_GROW)]
        # In training a program may come later, and goes with the phase: see the peaks by round.
        fixed = COUNTS if stage.startswith("search") else COUNTS[:2]
        wrong += [f"{stage}: {name}" for name in fixed if last[name] > warm[name]]
        # Peaks by round; what follows the rounds is held against the last of them.
        round = stage.split("/")[1] if "/" in stage else max(most)
        peaks = most.setdefault(round, dict.fromkeys(units[0], 0))
        for name in ("memory", *COUNTS):
            peaks[name] = max(peaks[name], *(unit[name] for unit in units))
    print("\n| peak of | memory, MB | open files | threads | compiled programs |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for number, round in enumerate(sorted(most), 1):
        peaks = most[round]
        counts = " | ".join(f"{peaks[name]:.0f}" for name in COUNTS)
        print(f"| round {number} | {peaks['memory']:,.0f} | {counts} |")
        for name in ("memory", *COUNTS) if number > 2 else ():
            if peaks[name] > ROUNDS_MAY_DIFFER * most["001"][name]:
                wrong.append(f"round {number}: more {name} than in the second")
    return wrong


def mean(units: list[dict]) -> float:
    return statistics.fmean(unit["memory"] for unit in units)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--questions", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--blocks", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("fields", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options.worker, options.fields, options.blocks)
        return 0
    place = Path(tempfile.mkdtemp(prefix="malt-long-"))
    one, many = begun(place / "one"), begun(place / "many")
    wrong = judged(worker(one, options))
    each = -(-options.questions // 2000)
    for _ in range(10):
        worker(many, options, each)
    same = trees(one) == trees(many) != b""
    shutil.rmtree(place)
    print(f"\nten processes: {'the same' if same else 'DIFFERENT'} bytes of trees")
    print("\n".join(wrong) or "nothing grew")
    return 1 if wrong or not same else 0


if __name__ == "__main__":
    sys.exit(main())
