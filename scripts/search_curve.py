"""How long the search of all of GSM8K takes an 8B model on 1 to 256 chips, on paper.

    python scripts/search_curve.py

Chips that each hold all weights share only the work of a search, so a chip's programs are the
same on any number of chips, and what the compiler said of them for the recipe's slice (kept in
docs/results/plans) holds for others. The rest is counting: rows per chip, steps until a level's
last completion begins, and the longest completion after that. A step with fewer rows takes the time
of reading the weights and, of the rest, the rows' share. Prints a Markdown table.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from malt_jax import config
from malt_jax.planning.chips import CHIPS
from malt_jax.planning.work import Work, count_work
from malt_jax.sampling.memory import CacheShape, first_shape, row_counts

ROOT = Path(__file__).parents[1]
RECIPE = "llama31_8b_gsm8k"
CHIP_COUNTS = (1, 4, 16, 64, 256)


def main() -> None:
    plan = json.loads((ROOT / "docs" / "results" / "plans" / f"{RECIPE}.json").read_text())
    settings = config.load(str(ROOT / "configs" / f"{RECIPE}.yaml"))
    work = count_work(settings)
    print(
        "| chips | rows per chip, by level | prefill | rows full | last ones | minutes | speed-up |"
    )
    print("| ---: | :--- | ---: | ---: | ---: | ---: | ---: |")
    alone = 0.0
    for chips in CHIP_COUNTS:
        rows, *parts = search(plan, work, chips)
        alone = alone or sum(parts)
        figures = " | ".join(f"{seconds / 60:.1f}" for seconds in (*parts, sum(parts)))
        print(f"| {chips} | {', '.join(map(str, rows))} | {figures} | {alone / sum(parts):.1f} |")


def search(plan: dict[str, Any], work: Work, chips: int) -> tuple[list[int], float, float, float]:
    """Rows per chip at each level, and seconds of prefill, of full rows, and of the last ones."""
    programs = {program["name"]: program for program in plan["programs"]}
    planned = plan["target"]["chips"]
    chip = CHIPS[plan["target"]["name"].partition(":")[0]]
    most = int(programs["decode"]["shape"].split()[0]) // planned
    prefill = [p for name, p in programs.items() if name.startswith("prefill")][-1]
    lanes, _, lane, *_ = prefill["shape"].split()
    weights = plan["model"]["bytes_per_chip"] / (chip.bandwidth or 1.0)
    shapes = [CacheShape(rows, 0, 0, 0, 0) for rows in row_counts(most * chips, chips)]
    rows, computing, full, last = [], 0.0, 0.0, 0.0
    for role in work.roles:
        batch = first_shape(shapes, role.nodes).rows
        rows.append(batch // chips)
        step = weights + (programs["decode"]["seconds"] - weights) * batch / chips / most
        full += role.nodes * role.completion / batch * step
        last += role.longest * step
        filled = sum(count * -(-tokens // int(lane)) for count, tokens in role.parts)
        computing += filled / chips / (int(lanes) / planned) * prefill["seconds"]
    return rows, computing, full, last


if __name__ == "__main__":
    main()
