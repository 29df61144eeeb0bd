"""Chooses settings on questions that are neither trained on nor evaluated.

    python scripts/choose_settings.py runs/settings
    python scripts/choose_settings.py runs/losses --config configs/compare_rules.yaml \\
        --grid pg train.pg.clip=0.2,0.5,0.9 --grid kto train.kto.optim.learning_rate=2e-4,5e-4

Trains a config, by default the quickstart's, under every combination of `GRID`, on one search per
seed, and measures each on the validation split (`task.num_validation`): the evaluation split is
never looked at. Each `--grid` stands in place of `GRID` and gives fields with values, after the
name of a credit rule if it is for one. An interrupted run is continued. Prints the settings by the
accuracy of their vote of three, and writes the table to runs/settings/settings.md. Each further
word is a flag of `malt run`.
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

from malt_jax.config import reading
from malt_jax.config.run import QUICKSTART, Config, load
from malt_jax.evaluation import cells
from malt_jax.evaluation.table import Table, numbers, texts

GRID = (
    "train.sft.optim.learning_rate=5e-4,1e-3,2e-3",
    "train.dpo.optim.learning_rate=1e-4,2e-4,4e-4",
    "train.dpo.epochs=2,3",
)
VALIDATION = 500
"""Questions to choose by. As many are set aside in every run, whatever its seed."""


def ablations(grids: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    """Every combination of each grid's values, as an ablation with a name that a folder can have.

    A grid is `FIELD=VALUES` words, with the name of a credit rule before them if it is for one.
    """
    made: list[dict[str, Any]] = []
    for words in grids:
        rule = {} if "=" in words[0] else {"rule": words[0]}
        pairs = [word.split("=", 1) for word in words[len(rule) :]]
        fields = [field for field, _ in pairs]
        for values in itertools.product(*(map(yaml.safe_load, v.split(",")) for _, v in pairs)):
            name = f"s{len(made):02d}"
            made.append({"name": name, **rule, "set": dict(zip(fields, values, strict=True))})
    return made


def config(path: Path, entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A config with one ablation for each of the settings, measured on the validation split."""
    data = yaml.safe_load(path.read_text())
    data["task"] |= {"num_validation": VALIDATION, "num_eval": None}
    data["eval"] = {"split": "validation", "systems": ["malt"], "baseline": "malt@3", "trees": 0}
    own = load(str(path))
    data["ablations"] = [dict(one) for one in entries if one.get("rule") or _differs(own, one)]
    return data


def _differs(own: Config, entry: Mapping[str, Any]) -> bool:
    """Whether an entry differs from the config itself, which is measured anyway."""
    data = reading.to_dict(own)
    for field, value in entry["set"].items():
        # As in the file, where `5e-4` is a number; PyYAML takes it for a text.
        read = reading.Flag(value) if isinstance(value, str) else value
        data = reading.assign(data, field, read, Config)
    return reading.build(Config, data) != own


def table(entries: Sequence[Mapping[str, Any]], results: Mapping[str, Any]) -> Table:
    """The settings, the most accurate first; the config's own are in the row without a name."""
    # Of the single agent there are rows as well, to compare with at equal calls.
    trained = [row for row in results["systems"] if row["system"].partition("-")[0] == "malt"]
    voted = [row for row in trained if row["votes"] == 3]
    alone = {row["system"]: row["accuracy"] for row in trained if row["votes"] == 1}
    named = {one["name"]: one for one in entries}
    rows = []
    for row in sorted(voted, key=lambda row: -row["accuracy"]):
        name = row["system"].removeprefix("malt").removeprefix("-")
        one = named.get(name, {})
        changed = ", ".join(f"{field}={value}" for field, value in one.get("set", {}).items())
        test = row["tests"].get("malt@3")
        against = [cells.points(test["delta"]), cells.probability(test["p"])] if test else ["", ""]
        accuracy = [cells.percent(alone[row["system"]]), cells.percent(row["accuracy"])]
        accuracy.append(cells.interval(row["interval"]))
        rows.append([name, one.get("rule", ""), changed or "as it is", *accuracy, *against])
    columns = texts("name", "rule", "settings")
    columns += numbers("one draw %", "vote of 3 %", "interval", "against as it is", "p")
    return Table(columns, rows)


def main() -> None:
    """Trains and measures what is not finished, then prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--config", type=Path, default=QUICKSTART)
    parser.add_argument("--grid", nargs="+", action="append", default=[], metavar="WORD")
    args, flags = parser.parse_known_args()
    entries = ablations(args.grid or [GRID])
    args.output.mkdir(parents=True, exist_ok=True)
    path = args.output / "grid.yaml"
    path.write_text(yaml.safe_dump(config(args.config, entries), sort_keys=False))
    for seed in args.seeds.split(","):
        words = ["--config", str(path), "--seed", seed]
        words += ["--output-dir", str(args.output / f"seed-{seed}"), *flags]
        if status := malt("run", *words):
            sys.exit(status)
    _, results = finished(args.output)
    found = table(entries, results)
    args.output.joinpath("settings.md").write_text(found.markdown() + "\n")
    print("\n".join(found.plain()))


if __name__ == "__main__":
    main()
