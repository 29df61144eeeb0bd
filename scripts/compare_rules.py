"""Compares credit rules on the same forests: one table and one picture over tasks and seeds.

    python scripts/make_quickstart_model.py --task triples --out runs/bases/triples
    python scripts/make_quickstart_model.py --task parity --out runs/bases/parity
    python scripts/compare_rules.py runs/rules
    python scripts/rule_memory.py runs/rules/parity/seed-0  # memory, for the last column

One run of `configs/compare_rules.yaml` per task and seed, in runs/rules/TASK/seed-N: the published
rule, and every other rule on the run's own trees. All take the same number of optimiser steps and
are measured at the same number of calls. A run that was interrupted is continued, a finished one is
only read, so the command can be repeated and given other tasks or seeds: the table is of whatever
is finished. Each further word is a flag of `malt run`, such as --task.num-eval 200.

Writes runs/rules/rules.json, rules.md, rules.pdf and rules.png: for every task and rule the
accuracy of one draw and of a vote of three, its difference from the published rule with the exact
sign-flip test over questions (one seed: McNemar's) and under each seed alone, Holm's correction
over all rules and tasks, a t test over the seeds, which share of the wrong drafts ends right
(mended) and of the right ones wrong (spoilt), tokens, and time and memory of training. Baselines of
the same runs stand beside them, without a test. A second table has the examples of each phase.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from scipy.stats import ttest_1samp

from malt_jax.evaluation import cells
from malt_jax.evaluation.statistics import holm
from malt_jax.evaluation.table import Table, numbers, texts

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs" / "compare_rules.yaml"
TASKS = ("arithmetic", "triples", "parity")
PUBLISHED = "published"
MEMORY = "rule_memory.json"
"""The file of a run with the memory of each rule, by `scripts/rule_memory.py`."""
ROLES = ("generator", "verifier", "refiner")
BASELINES = {"sa@9": "single agent, vote of 9", "ma@3": "untrained", "star-ma@3": "STaR pipeline"}


@dataclass(frozen=True)
class Test:
    """A rule against the published one, on the same questions."""

    delta: float
    """Difference in accuracy."""
    interval: list[float]
    seeds: list[float]
    """The difference under each seed alone: what another training would change shows here only."""
    p: float
    p_holm: float
    p_seeds: float | None
    """Of a t test over the seeds' differences: whether another training would differ as well. None
    for one seed, and for seeds that do not differ."""


@dataclass(frozen=True)
class Row:
    """One rule or baseline on one task, over all finished seeds."""

    task: str
    name: str
    accuracy: float
    """Of a vote of three, or as the baseline's name says."""
    interval: list[float]
    alone: float
    """Accuracy of one draw."""
    calls: int
    """Completions per question, of all draws that vote."""
    tokens: float
    """Generated per question, by all draws that vote."""
    mended: float | None = None
    """Share of the wrong drafts that end right; None for a single agent."""
    spoilt: float | None = None
    """Share of the right drafts that end wrong."""
    test: Test | None = None
    """None for the published rule and for baselines."""
    steps: int = 0
    """Optimiser steps of all roles."""
    seconds: float = 0.0
    """All steps at their phase's median time, without compiling; on average over the seeds."""
    peak_bytes: int = 0
    """Resident peak of a process that only trains by this rule; 0 if it was not measured."""


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
    tested = [row["tests"]["malt@3"] for *_, results in found for row in other_rules(results)]
    adjusted = iter(holm([test["p"] for test in tested]))
    rows = []
    for task, runs, results in found:
        named = {row["name"]: row for row in results["systems"]}
        steps = set()
        for name, row in _in_order(results):
            test = None
            if row["system"].startswith("malt-"):
                test = _test(row["tests"]["malt@3"], results["questions"], next(adjusted))
            costs = {}
            if name not in BASELINES.values():
                costs = training_cost(runs, name)
                steps.add(costs["steps"])
            one = named[row["system"]]
            values = row["accuracy"], row["interval"], one["accuracy"], row["calls"], row["tokens"]
            changes = changed_drafts(results, row["system"])
            rows.append(Row(task, name, *values, *changes, test, **costs))
        if len(steps) > 1:
            sys.exit(f"{task}: rules took {sorted(steps)} optimiser steps; a role had no data")
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


def other_rules(results: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The rows of all rules but the published one, under a vote of three."""
    for row in results["systems"]:
        if row["votes"] == 3 and row["system"].startswith("malt-"):
            yield row


def _in_order(results: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a task by name: baselines, the published rule, the other ones."""
    named = {row["name"]: row for row in results["systems"]}
    for key, name in BASELINES.items():
        if key in named:
            yield name, named[key]
    if "malt@3" in named:
        yield PUBLISHED, named["malt@3"]
    for row in other_rules(results):
        yield row["system"].removeprefix("malt-"), row


def changed_drafts(results: dict[str, Any], system: str) -> tuple[float | None, float | None]:
    """Which share of a chain's wrong drafts ends right, and of its right ones wrong."""
    for row in results.get("turns", ()):
        if row["system"] == system:
            right = row["accuracy"][0]["accuracy"] * row["draws"]
            flips = row["flips"][0]  # from the draft to the last answer
            wrong = row["draws"] - right
            return (
                flips["wrong_to_right"] / wrong if wrong else None,
                flips["right_to_wrong"] / right if right else None,
            )
    return None, None


def _test(test: dict[str, Any], questions: int, p_holm: float) -> Test:
    seeds = test.get("seeds", {"": test})
    deltas = [(s["wrong_to_right"] - s["right_to_wrong"]) / questions for s in seeds.values()]
    differ = len({round(delta, 9) for delta in deltas}) > 1
    p_seeds = float(ttest_1samp(deltas, 0.0).pvalue) if differ else None
    return Test(test["delta"], test["delta_interval"], deltas, test["p"], p_holm, p_seeds)


def training_cost(runs: Sequence[Path], rule: str) -> dict[str, Any]:
    """Steps, seconds and highest memory of a rule's training, without the STaR baseline's.

    What a rule has in common with the published one was trained once, and counts for both. Memory
    is that which `rule_memory.py` has measured.
    """
    seconds, steps, peak = [], [], 0
    for run in runs:
        if (measured := run / MEMORY).exists():
            peak = max(peak, json.loads(measured.read_text())[rule])
        own = run if rule == PUBLISHED else run / "ablations" / rule
        in_run, in_own = _step_seconds(run), _step_seconds(own)
        taken, total = 0, 0.0
        for path in sorted((own / "cost").glob("train-*.json")):
            if "-star-" in path.name:
                continue
            cost, phase = json.loads(path.read_text()), path.stem.removeprefix("train-")
            if "steps" not in cost and (run / "cost" / path.name).exists():
                cost = json.loads((run / "cost" / path.name).read_text())
            count = cost.get("steps", 0)
            taken += count
            total += count * (in_own.get(phase) or in_run.get(phase) or 0.0)
        seconds.append(total)
        steps.append(taken)
    if len(set(steps)) > 1:
        sys.exit(f"{rule}: took {steps} optimiser steps under its seeds; a role had no data")
    return {"steps": steps[0], "seconds": statistics.mean(seconds), "peak_bytes": peak}


def _step_seconds(run: Path) -> dict[str, float]:
    """The median seconds of a step, by ROUND-ROLE-PHASE."""
    steps = defaultdict(list)
    if (run / "metrics.jsonl").exists():
        for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()):
            if line["stage"] == "train" and line.get("tokens_per_s"):
                name = f"{line['round']:03d}-{line['role']}-{line['phase']}"
                steps[name].append(line["useful_tokens"] / line["tokens_per_s"])
    return {name: statistics.median(times) for name, times in steps.items()}


def table(rows: Sequence[Row]) -> Table:
    """One line per task and rule."""
    columns = texts("task", "rule") + numbers(
        "one draw %", "mended %", "spoilt %", "vote of 3 %", "interval", "calls", "tokens",
        "against published", "interval",
        "by seed", "p", "p (Holm)", "p over seeds", "training s", "memory MB",
    )  # fmt: skip
    lines = []
    for row in rows:
        test = [""] * 6
        if found := row.test:
            test = [
                cells.points(found.delta),
                cells.points_interval(found.interval),
                ", ".join(map(cells.points, found.seeds)),
                cells.probability(found.p),
                cells.probability(found.p_holm),
                "" if found.p_seeds is None else cells.probability(found.p_seeds),
            ]
        cost = [f"{row.seconds:.0f}" if row.steps else ""]
        cost.append(f"{row.peak_bytes / 1e6:.0f}" if row.peak_bytes else "")
        shares = row.alone, row.mended, row.spoilt, row.accuracy
        measured = ["" if share is None else cells.percent(share) for share in shares]
        measured += [cells.interval(row.interval), f"{row.calls:.0f}", f"{row.tokens:.0f}"]
        lines.append([row.task, row.name, *measured, *test, *cost])
    return Table(columns, lines)


def examples(output: Path, rows: Sequence[Row]) -> Table:
    """What each rule's phases learnt from under the first seed, and in how many passes.

    Steps are the same for all, so a rule with few examples repeats them.
    """
    phases = ("sft", "dpo", "kto", "pg")
    columns = texts("task", "rule") + numbers(*(f"{r} {p.upper()}" for r in ROLES for p in phases))
    lines = []
    for row in (row for row in rows if row.steps):
        run = sorted(path.parent for path in (output / row.task).glob("seed-*/results.json"))[0]
        own = run if row.name == PUBLISHED else run / "ablations" / row.name
        train = yaml.safe_load((own / "config.yaml").read_text())["train"]
        line = []
        for name in (f"train-000-{role}-{phase}.json" for role in ROLES for phase in phases):
            cost = {}
            for place in (run, own):  # a phase like the published one was trained once
                if (own / "cost" / name).exists() and (place / "cost" / name).exists():
                    cost |= json.loads((place / "cost" / name).read_text())
            batch = train[name.removesuffix(".json").rpartition("-")[2]]["batch_size"]
            count = cost.get("counts", {}).get("trained", 0)
            line.append(f"{count} ({cost['steps'] * batch / count:.1f})" if count else "")
        lines.append([row.task, row.name, *line])
    kept = [i for i in range(len(columns)) if any(line[i] for line in lines)]
    return Table([columns[i] for i in kept], [[line[i] for i in kept] for line in lines])


def draw(rows: Sequence[Row], path: Path) -> None:
    """Each rule's difference from the published one with its interval, one panel per task.

    A filled point: Holm's p is below 0.01 and all seeds agree on the sign. Small marks: the seeds.
    """
    from matplotlib.figure import Figure

    rows = [row for row in rows if row.test]
    tasks = list(dict.fromkeys(row.task for row in rows))
    names = list(dict.fromkeys(row.name for row in rows))
    figure = Figure(figsize=(2 + 2.6 * len(tasks), 0.8 + 0.3 * len(names)), layout="constrained")
    panels = figure.subplots(1, len(tasks), sharey=True, squeeze=False)[0]
    for panel, task in zip(panels, tasks, strict=True):
        for row in (row for row in rows if row.task == task):
            place, test = names.index(row.name), row.test
            low, high = (100 * bound for bound in test.interval)
            agree = len({seed > 0 for seed in test.seeds if seed}) == 1
            filled = "full" if test.p_holm < 0.01 and agree else "none"
            panel.plot([low, high], [place, place], color="0.5", linewidth=1)
            panel.plot(
                [100 * seed for seed in test.seeds], [place] * len(test.seeds), "|", color="0.3"
            )
            panel.plot(100 * test.delta, place, "o", color="black", fillstyle=filled)
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
    if not any(row.test for row in rows):
        sys.exit(f"{args.output}: no finished run")
    found = table(rows)
    args.output.joinpath("rules.json").write_text(
        json.dumps([asdict(row) for row in rows], indent=2) + "\n"
    )
    args.output.joinpath("rules.md").write_text(
        f"{found.markdown()}\n\n{examples(args.output, rows).markdown()}\n"
    )
    draw(rows, args.output / "rules")
    print("\n".join(found.plain()))


if __name__ == "__main__":
    main()
