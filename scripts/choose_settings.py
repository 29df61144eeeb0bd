"""Chooses the quickstart's settings on questions that are neither trained on nor evaluated.

    python scripts/choose_settings.py runs/settings

Trains the quickstart under every combination of `GRID`, on one search per seed, and measures each
on the validation split (`task.num_validation`): the evaluation split is never looked at. An
interrupted run is continued. Prints the settings by the accuracy of their vote of three, and writes
the table to runs/settings/settings.md. `--grid train.dpo.epochs=2,3` replaces the grid, each
further word is a flag of `malt run`.

What it costs was estimated and not measured: 18 trainings of about 100 s and as many evaluations of
500 questions make 35 minutes per seed on two cores, and 70 for both.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from compare_rules import finished, malt

from malt_jax.config.run import QUICKSTART
from malt_jax.evaluation import cells
from malt_jax.evaluation.table import Table, numbers, texts

GRID = {
    "train.sft.optim.learning_rate": (5e-4, 1e-3, 2e-3),
    "train.dpo.optim.learning_rate": (1e-4, 2e-4, 4e-4),
    "train.dpo.epochs": (2, 3),
}
VALIDATION = 500
"""Questions to choose by. As many are set aside in every run, whatever its seed."""


def combinations(grid: Mapping[str, Sequence[Any]]) -> dict[str, dict[str, Any]]:
    """Every combination of the grid's values, by a name that a folder can have."""
    every = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    return {f"s{number:02d}": settings for number, settings in enumerate(every)}


def config(settings: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The quickstart's config with one ablation for each of the settings."""
    data = yaml.safe_load(QUICKSTART.read_text())
    data["task"]["num_validation"] = VALIDATION
    data["task"]["num_eval"] = None
    data["eval"] = {"split": "validation", "systems": ["malt"], "baseline": "malt@3", "trees": 0}
    data["ablations"] = [{"name": name, "set": dict(one)} for name, one in settings.items()]
    return data


def table(settings: Mapping[str, Mapping[str, Any]], results: Mapping[str, Any]) -> Table:
    """The settings, the most accurate first; the quickstart's own are in the row without a name."""
    voted = [row for row in results["systems"] if row["votes"] == 3]
    voted.sort(key=lambda row: -row["accuracy"])
    fields = list(next(iter(settings.values())))
    rows = []
    for row in voted:
        name = row["system"].removeprefix("malt").removeprefix("-")
        values = [str(settings[name][field]) if name else "as it is" for field in fields]
        test = row["tests"].get("malt@3")
        against = [cells.points(test["delta"]), cells.probability(test["p"])] if test else ["", ""]
        accuracy = [cells.percent(row["accuracy"]), cells.interval(row["interval"])]
        rows.append([name, *values, *accuracy, *against])
    columns = texts("name") + numbers(*fields, "accuracy %", "interval", "against as it is", "p")
    return Table(columns, rows)


def parsed(words: Sequence[str]) -> dict[str, tuple[Any, ...]]:
    """`field=1,2` as a grid."""
    pairs = (word.split("=", 1) for word in words)
    return {field: tuple(map(yaml.safe_load, values.split(","))) for field, values in pairs}


def main() -> None:
    """Trains and measures what is not finished, then prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--grid", nargs="+", default=[], metavar="FIELD=VALUES")
    args, flags = parser.parse_known_args()
    settings = combinations(parsed(args.grid) or GRID)
    args.output.mkdir(parents=True, exist_ok=True)
    path = args.output / "grid.yaml"
    path.write_text(yaml.safe_dump(config(settings), sort_keys=False))
    for seed in args.seeds.split(","):
        words = ["--config", str(path), "--seed", seed]
        words += ["--output-dir", str(args.output / f"seed-{seed}"), *flags]
        if status := malt("run", *words):
            sys.exit(status)
    _, results = finished(args.output)
    found = table(settings, results)
    args.output.joinpath("settings.md").write_text(found.markdown() + "\n")
    print("\n".join(found.plain()))


if __name__ == "__main__":
    main()
