"""Compares all credit rules on the same forests: one table and one picture over tasks and seeds.

    python scripts/make_quickstart_model.py --task pairs --out runs/bases/pairs
    python scripts/make_quickstart_model.py --task knights --out runs/bases/knights
    python scripts/compare_rules.py runs/rules

One run of `configs/compare_rules.yaml` per task and seed, in runs/rules/TASK/seed-N: the published
rule, and every other rule on the run's own trees. All take the same number of optimiser steps and
are measured at the same number of calls. A run that was interrupted is continued, a finished one is
only read, so the command can be repeated and given other tasks or seeds: the table is of whatever
is finished. Each further word is a flag of `malt run`, such as --task.num-eval 200.

Writes runs/rules/rules.json, rules.md, rules.pdf and rules.png: for every task and rule the
accuracy of a vote of three, its difference from the published rule with the exact sign-flip test
over questions (one seed: McNemar's), Holm's correction over all rules and tasks, and the time and
the highest memory of training.

What it costs was estimated and not measured: the quickstart's stages take 0.24 s per optimiser step
and 10 s per measured pipeline on two cores, so a seed of the embedded task should take 20 minutes
(some 4,200 steps, 13 systems) and three seeds an hour; the other tasks' models have the same size.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from malt_jax.evaluation import cells
from malt_jax.evaluation.statistics import holm
from malt_jax.evaluation.table import Table, numbers, texts

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs" / "compare_rules.yaml"
TASKS = ("arithmetic", "pairs", "knights")
PUBLISHED = "published"


@dataclass(frozen=True)
class Row:
    """One rule on one task, over all finished seeds."""

    task: str
    rule: str
    accuracy: float
    interval: list[float]
    delta: float
    """Difference in accuracy from the published rule."""
    delta_interval: list[float]
    p: float
    p_holm: float
    steps: int
    """Optimiser steps of all roles."""
    seconds: float
    """Training, on average over the seeds."""
    peak_bytes: int
    """The highest memory of a training phase."""


def malt(*words: str, quiet: bool = False) -> int:
    """The exit status of a command of the package, in a process of its own."""
    command = [sys.executable, "-c", "from malt_jax.cli import console; console()", *words]
    output = subprocess.DEVNULL if quiet else None
    return subprocess.run(command, check=False, stdout=output).returncode


def run_all(args: argparse.Namespace, flags: Sequence[str]) -> None:
    """Runs every task and seed that is not finished."""
    for task in args.tasks.split(","):
        model = "quickstart" if task == "arithmetic" else str(args.bases / task)
        for seed in args.seeds.split(","):
            folder = args.output / task / f"seed-{seed}"
            words = ["--config", str(args.config), "--task.name", task, "--model.path", model]
            words += ["--seed", seed, "--output-dir", str(folder), *flags]
            if status := malt("run", *words):
                sys.exit(status)


def summarise(output: Path) -> list[Row]:
    """The rows of every task that has a finished run; several seeds are pooled."""
    folders = sorted(path for path in output.iterdir() if path.is_dir())
    found = [(folder.name, *finished(folder)) for folder in folders]
    tests = [(task, runs, row) for task, runs, results in found for row in rules(results)]
    adjusted = holm([compared(row)["p"] for *_, row in tests if row["name"] != "malt@3"])
    corrected = iter(adjusted)
    rows = []
    for task, runs, row in tests:
        rule = row["system"].removeprefix("malt").removeprefix("-") or PUBLISHED
        test = compared(row)
        costs = [training_cost(run, rule) for run in runs]
        rows.append(
            Row(
                task,
                rule,
                row["accuracy"],
                row["interval"],
                test["delta"],
                test["delta_interval"],
                test["p"],
                1.0 if rule == PUBLISHED else next(corrected),
                costs[0]["steps"],
                sum(cost["seconds"] for cost in costs) / len(costs),
                max(cost["peak_bytes"] for cost in costs),
            )
        )
    return rows


def finished(folder: Path) -> tuple[list[Path], dict[str, Any]]:
    """The finished runs `seed-*` of a folder, and their results: pooled, if they are several."""
    runs = sorted(path.parent for path in folder.glob("seed-*/results.json"))
    if not runs:
        return [], {"systems": []}
    if len(runs) == 1:
        return runs, json.loads((runs[0] / "results.json").read_text())
    if malt("pool", *map(str, runs), "--output", str(folder / "pooled"), quiet=True):
        sys.exit(f"{folder}: the seeds cannot be pooled")
    return runs, json.loads((folder / "pooled" / "results.json").read_text())


def rules(results: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The rows of the trained pipelines under a vote of three, the published rule first."""
    voted = [row for row in results["systems"] if row["votes"] == 3]
    trained = [row for row in voted if row["system"].split("-")[0] == "malt"]
    yield from sorted(trained, key=lambda row: row["system"] != "malt")


def compared(row: dict[str, Any]) -> dict[str, Any]:
    """The row's test against the published rule; the published rule is as it is."""
    same = {"delta": 0.0, "delta_interval": [0.0, 0.0], "p": 1.0}
    return same if row["name"] == "malt@3" else row["tests"]["malt@3"]


def training_cost(run: Path, rule: str) -> dict[str, Any]:
    """Steps, seconds and highest memory of a rule's training, without the STaR baseline's.

    What a rule has in common with the published one was trained once, and counts for both.
    """
    own = run if rule == PUBLISHED else run / "ablations" / rule
    seconds, steps, peak = 0.0, 0, 0
    for path in sorted((own / "cost").glob("train-*.json")):
        if "-star-" in path.name:
            continue
        cost = json.loads(path.read_text())
        if "steps" not in cost and (run / "cost" / path.name).exists():
            cost = json.loads((run / "cost" / path.name).read_text())
        seconds += cost.get("seconds", 0.0) if "steps" in cost else 0.0
        steps, peak = steps + cost.get("steps", 0), max(peak, cost.get("peak_bytes", 0))
    return {"seconds": seconds, "steps": steps, "peak_bytes": peak}


def table(rows: Sequence[Row]) -> Table:
    """One line per task and rule."""
    columns = texts("task", "rule") + numbers(
        "accuracy %", "interval", "against published", "interval", "p", "p (Holm)", "steps",
        "training s", "memory MB",
    )  # fmt: skip
    lines = []
    for row in rows:
        published = row.rule == PUBLISHED
        test = [
            cells.points(row.delta),
            cells.points_interval(row.delta_interval),
            cells.probability(row.p),
            cells.probability(row.p_holm),
        ]
        lines.append(
            [
                row.task,
                row.rule,
                cells.percent(row.accuracy),
                cells.interval(row.interval),
                *([""] * 4 if published else test),
                str(row.steps),
                f"{row.seconds:.0f}",
                f"{row.peak_bytes / 1e6:.0f}",
            ]
        )
    return Table(columns, lines)


def draw(rows: Sequence[Row], path: Path) -> None:
    """Each rule's difference from the published one with its interval, one panel per task."""
    from matplotlib.figure import Figure

    tasks = list(dict.fromkeys(row.task for row in rows))
    names = [rule for rule in dict.fromkeys(row.rule for row in rows) if rule != PUBLISHED]
    figure = Figure(figsize=(2 + 2.6 * len(tasks), 0.8 + 0.3 * len(names)), layout="constrained")
    panels = figure.subplots(1, len(tasks), sharey=True, squeeze=False)[0]
    for panel, task in zip(panels, tasks, strict=True):
        for row in (row for row in rows if row.task == task and row.rule != PUBLISHED):
            place = names.index(row.rule)
            low, high = (100 * bound for bound in row.delta_interval)
            sure = row.p_holm < 0.01
            panel.plot([low, high], [place, place], color="0.5", linewidth=1)
            panel.plot(
                100 * row.delta, place, "o", color="black", fillstyle="full" if sure else "none"
            )
        panel.axvline(0, color="0.7", linewidth=0.8)
        panel.set(title=task, xlabel="points against the published rule")
    panels[0].set_yticks(range(len(names)), names)
    panels[0].invert_yaxis()
    for suffix in ("pdf", "png"):
        figure.savefig(path.with_suffix(f".{suffix}"), dpi=150)


def main() -> None:
    """Runs what is not finished, then writes the table and the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--bases", type=Path, default=Path("runs/bases"))
    parser.add_argument("--table", action="store_true", help="only read what is finished")
    args, flags = parser.parse_known_args()
    if not args.table:
        run_all(args, flags)
    rows = summarise(args.output)
    if not rows:
        sys.exit(f"{args.output}: no finished run")
    found = table(rows)
    args.output.joinpath("rules.json").write_text(
        json.dumps([asdict(row) for row in rows], indent=2) + "\n"
    )
    args.output.joinpath("rules.md").write_text(found.markdown() + "\n")
    draw(rows, args.output / "rules")
    print("\n".join(found.plain()))


if __name__ == "__main__":
    main()
