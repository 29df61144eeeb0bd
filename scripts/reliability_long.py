"""Searches 2,000 questions in one process and measures what grows; then again with restarts.

    python scripts/reliability_long.py [--questions 2000] [--block 200]

Uses the embedded model and task, with trees of 2 + 4 + 8 nodes. Prints memory, open files and
compiled programs after every block. Expected: none of the three grows after the first five blocks
(memory by at most 2%), and a run whose process is replaced after every block has the same bytes of
trees. Exits 1 otherwise. Takes about two minutes on two idle cores.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

WARM_UP, MAY_GROW = 5, 1.02
CONFIG = """
task: {num_eval: 1}
pipeline:
  roles:
    - {name: generator, branch: 2, temperature: 1.0, max_new_tokens: 8, train: sft}
    - {name: verifier, branch: 2, temperature: 1.0, max_new_tokens: 8, answers: false}
    - {name: refiner, branch: 2, temperature: 1.0, max_new_tokens: 8}
sampler: {prefix_buckets: [64], new_token_buckets: [8]}
"""


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def work(folder: Path, questions: int, block: int, blocks: int) -> None:
    """Searches at most `blocks` blocks of the run and prints one JSON line after each block."""
    from malt_jax import config as configs
    from malt_jax.config import reading
    from malt_jax.progress import Progress
    from malt_jax.stages.search import search
    from malt_jax.stages.session import Session
    from malt_jax.storage.rundir import RunDir

    class Watch(Progress):
        done = 0

        def update(self, *_, **__) -> None:
            self.done += 1
            seen = {
                "memory_mb": resident_mb(),
                "open_files": len(os.listdir("/proc/self/fd")),
                "programs": session.sampler.stats.executables,
            }
            print(json.dumps(seen), flush=True)
            if self.done == blocks:
                sys.exit()

    config = configs.load(
        str(folder / "config.yaml"),
        ["--task.num-train", str(questions), "--search.block", str(block)],
    )
    with RunDir.open(folder / "run", reading.to_dict(config), "reliability_long") as run:
        session = Session(config, run, Watch(quiet=True))
        search(session, 0)


def in_processes(folder: Path, options: argparse.Namespace, blocks: int) -> list[dict]:
    """Searches everything, in a new process after every `blocks` blocks; the figures per block."""
    folder.mkdir()
    (folder / "config.yaml").write_text(CONFIG)
    total, seen = -(-options.questions // options.block), []
    while len(seen) < total:
        arguments = ["--questions", options.questions, "--block", options.block]
        command = [sys.executable, __file__, *arguments, "--worker", folder, "--blocks", blocks]
        done = subprocess.run(map(str, command), stdout=subprocess.PIPE, text=True, check=True)
        seen += [json.loads(line) for line in done.stdout.splitlines()]
    return seen


def trees(folder: Path) -> bytes:
    return b"".join(p.read_bytes() for p in sorted(folder.glob("run/rounds/000/trees/*.jsonl")))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--questions", type=int, default=2000)
    parser.add_argument("--block", type=int, default=200)
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--blocks", type=int, default=1, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options.worker, options.questions, options.block, options.blocks)
        return 0
    place = Path(tempfile.mkdtemp(prefix="malt-long-"))
    count = -(-options.questions // options.block)
    seen = in_processes(place / "one", options, count)
    print(
        "| questions | memory, MB | open files | compiled programs |\n| ---: | ---: | ---: | ---: |"
    )
    for index, s in enumerate(seen, start=1):
        row = (index * options.block, round(s["memory_mb"]), s["open_files"], s["programs"])
        print("| " + " | ".join(f"{value:,}" for value in row) + " |")
    warm, last = seen[WARM_UP - 1], seen[-1]
    grown = last["memory_mb"] / warm["memory_mb"]
    wrong = [name for name in ("open_files", "programs") if last[name] > warm[name]]
    wrong += ["memory"] if grown > MAY_GROW else []
    print(f"\nmemory after the last block: {grown:.3f} of that after block {WARM_UP}")
    in_processes(place / "restarted", options, 1)
    same = trees(place / "one") == trees(place / "restarted")
    print(f"restarted after every block: {'the same' if same else 'DIFFERENT'} bytes of trees")
    shutil.rmtree(place)
    print(f"grew: {', '.join(wrong)}" if wrong else "nothing grew")
    return 1 if wrong or not same else 0


if __name__ == "__main__":
    sys.exit(main())
