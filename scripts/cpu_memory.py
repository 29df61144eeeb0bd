"""Peak memory and compile time of a search and of training on a CPU, beside what `malt plan` says.

    python scripts/cpu_memory.py runs/memory --model.path DIR --task.name csqa \\
        --task.train-path train.jsonl --task.eval-path eval.jsonl --task.num-train 32

Plans, searches, labels and trains with these fields, each in a process of its own, and prints one
JSON object per line: the stage, the peak of its resident memory, the memory that the plan states,
by how much the peak exceeds 1.25 times that, and what was compiled. The compilation cache is off.
The folder must not exist yet.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

MALT = [sys.executable, "-c", "from malt_jax.cli import console; console()"]
KINDS = {"search": ("copy", "prefill", "decode"), "train": ("step", "reference")}
"""Words in the names of the planned programs that a stage runs."""


def run(*words: str) -> tuple[str, float, int]:
    """Standard output, seconds and the peak of the resident memory of a command."""
    began = time.perf_counter()
    process = subprocess.Popen([*MALT, *words], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(words)}: exit status {os.waitstatus_to_exitcode(status)}")
    return output, time.perf_counter() - began, usage.ru_maxrss << 10


def planned(fields: list[str]) -> dict[str, Any]:
    """The plan, and the largest of its programs by stage."""
    plan = json.loads(run("plan", *fields, "--json")[0].splitlines()[-1])
    largest = {
        stage: max(
            program["total_bytes"]
            for program in plan["programs"]
            if any(word in program["name"] for word in words)
        )
        for stage, words in KINDS.items()
    }
    return {"bytes": largest, "programs": plan["work"]["search_programs"]}


def main(folder: Path, fields: list[str]) -> None:
    if folder.exists():
        raise SystemExit(f"{folder} exists; remove it, or name another folder")
    fields = [*fields, "--output-dir", str(folder), "--sampler.cache-dir", "null"]
    plan = planned(fields)
    for stage in ("search", "label", "train"):
        _, seconds, peak = run(stage, *fields)
        # A training measures the peak of each of its phases anew, so the process's own is the last.
        costs = (folder / "cost").glob(f"{stage}-*.json")
        peak = max([peak, *(json.loads(cost.read_text())["peak_bytes"] for cost in costs)])
        record: dict[str, Any] = {"stage": stage, "seconds": seconds, "peak_bytes": peak}
        if stage in KINDS:
            stated = plan["bytes"][stage]
            record |= {"planned_bytes": stated, "beyond_1.25_plans": peak - 1.25 * stated}
        if stage == "search":
            cost = json.loads((folder / "cost" / "search-000.json").read_text())
            record |= {
                "programs": cost["executables"],
                "planned_programs": plan["programs"],
                "compile_seconds": cost["compile_seconds"],
            }
        print(json.dumps(record), flush=True)


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]), sys.argv[2:])
