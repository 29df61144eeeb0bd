"""The README's tables of results, from finished runs.

    malt pool runs/seed-0 runs/seed-1 runs/seed-2 --output runs/pooled
    python scripts/readme_table.py runs/pooled quickstart

Keeps the rows of RUN/results.json in `docs/results/NAME.json` and writes every table of the README
between its marks, which name the kept file. Without arguments it writes the tables again from what
is kept; `--check` writes nothing and exits with 1 if the README differs.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from functools import partial
from pathlib import Path
from typing import Any

from malt_jax.evaluation.cells import interval, percent, points, points_interval, probability
from malt_jax.evaluation.statistics import holm

ROOT = Path(__file__).parents[1]
README, KEPT = ROOT / "README.md", ROOT / "docs" / "results"
BLOCK = re.compile(
    r"(<!-- results: written by scripts/readme_table\.py from docs/results/(\w+)\.json -->\n)"
    r".*?\n(<!-- end of results -->)",
    re.DOTALL,
)
ROWS = ("sa", "sa@3", "sa@9", "ma", "ma@3", "star-sa@9", "star-ma", "star-ma@3", "malt", "malt@3")
REFERENCE = "malt@3"
PRIMARY = ("sa@9", "star-sa@9", "star-ma@3")
"""The comparisons that were fixed before any run: those with systems of as many calls."""


def kept(results: dict[str, Any]) -> dict[str, Any]:
    """What the table needs of a run's results, and the hashes of the records they came from."""
    if results["baseline"] != REFERENCE:
        sys.exit(f"expected results against {REFERENCE}: `eval.baseline` of a run or of a pool.")
    rows = {row["name"]: row for row in map(without_temperature, results["systems"])}
    # Of a model in a folder its name alone: where it lay on the machine says nothing.
    model, path = results["run"]["model"], Path(results["run"]["model"]["path"])
    name = path.name if path.is_absolute() or path.is_dir() else model["path"]
    results = {**results, "run": {**results["run"], "model": {**model, "path": name}}}
    facts = ("run", "questions", "seeds", "baseline", "confidence", "records")
    return {**{name: results[name] for name in facts}, "systems": [rows[name] for name in ROWS]}


def without_temperature(row: dict[str, Any]) -> dict[str, Any]:
    """A row of a sweep over one temperature, under the names that rows have without one."""
    if (t := row.get("temperature")) is None:
        return row
    tests = {name.replace(f"-t{t:g}", ""): test for name, test in row["tests"].items()}
    name, label = row["name"].replace(f"-t{t:g}", ""), row["label"].replace(f", T={t:g}", "")
    return {**row, "name": name, "label": label, "tests": tests}


def table(results: dict[str, Any]) -> str:
    """Markdown: every row's accuracy, and its tests against MALT's vote."""
    lines = by_seed(results) if len(results["seeds"]) > 1 else of_one_seed(results)
    head, *rows = lines
    lines = [head, [":---", *["---:"] * (len(head) - 1)], *rows]
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    several = len(results["seeds"]) > 1
    same = f"Accuracy in % on the same {results['questions']} held-out questions for every row"
    tests = (
        " and seed; calls and generated tokens are per question. p compares with the last row on "
        "the same questions: the exact McNemar test of the seed where it is largest, and the exact "
        "sign-flip test over questions with the seeds pooled. Both are about these trained "
        "weights; how much another training would differ, the seeds say."
        if several
        else f" (seed {results['seeds'][0]}); calls and generated tokens are per question. MALT's "
        "gain is the last row against this one on the same questions, in points with a paired "
        "bootstrap interval; p is the exact McNemar test, and Holm's correction is over the three "
        "comparisons that were fixed beforehand."
    )
    return f"{text}\n\n{same}{tests} All systems: `results.md` of a run."


def by_seed(results: dict[str, Any]) -> list[list[str]]:
    """Accuracy under each seed and pooled; p of the worst seed and pooled."""
    seeds = [str(seed) for seed in results["seeds"]]
    head = ["system", "calls", "tokens", *(f"seed {seed}" for seed in seeds), "pooled"]
    lines = [[*head, "interval", "p, worst seed", "p, pooled"]]
    for row in results["systems"]:
        accuracies = [percent(row["seeds"][seed]) for seed in seeds] + [percent(row["accuracy"])]
        test = row["tests"].get(REFERENCE)
        p = [max(map(partial(_p, test), seeds)), test["p"]] if test else []
        shown = [probability(value) for value in p] or ["", ""]
        accuracies = [emphasised(row, accuracy) for accuracy in accuracies]
        lines.append([*beginning(row), *accuracies, interval(row["interval"]), *shown])
    return lines


def _p(test: dict[str, Any], seed: str) -> float:
    """p of one seed; 1 if it says the opposite of all seeds together, however surely."""
    flips = test["seeds"][seed]
    gain = flips["wrong_to_right"] - flips["right_to_wrong"]
    return float(flips["p"]) if gain * test["delta"] >= 0 else 1.0


def of_one_seed(results: dict[str, Any]) -> list[list[str]]:
    """Accuracy, MALT's gain over each row with its interval, and p of the fixed comparisons."""
    rows = {row["name"]: row for row in results["systems"]}
    corrected = holm([rows[name]["tests"][REFERENCE]["p"] for name in PRIMARY])
    p_holm = dict(zip(PRIMARY, corrected, strict=True))
    lines = [["system", "calls", "tokens", "accuracy", "interval", "MALT's gain", "p", "p (Holm)"]]
    for name, row in rows.items():
        compared = ["", "", ""]
        if test := row["tests"].get(REFERENCE):
            # The test is of this row against MALT's, so that its gain is the negative.
            low, high = test["delta_interval"]
            gain = f"{points(-test['delta'])} ({points_interval([-high, -low])})"
            last = probability(p_holm[name]) if name in p_holm else ""
            compared = [gain, probability(test["p"]), last]
        accuracy = emphasised(row, percent(row["accuracy"]))
        lines.append([*beginning(row), accuracy, interval(row["interval"]), *compared])
    return lines


def beginning(row: dict[str, Any]) -> list[str]:
    return [row["label"], str(row["calls"]), f"{row['tokens']:.0f}"]


def emphasised(row: dict[str, Any], accuracy: str) -> str:
    return f"**{accuracy}**" if row["name"] == REFERENCE else accuracy


def written(readme: str) -> str:
    """The README with every table as its kept file has it."""

    def block(found: re.Match[str]) -> str:
        begin, name, end = found.groups()
        return f"{begin}{table(json.loads((KEPT / f'{name}.json').read_text()))}\n{end}"

    return BLOCK.sub(block, readme)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", nargs="?", type=Path, help="a folder with results.json")
    parser.add_argument("name", nargs="?", help="of the kept file")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    if options.run:
        if not options.name:
            parser.error("name: none is given; give that of the kept file, for example quickstart.")
        results = kept(json.loads((options.run / "results.json").read_text()))
        text = json.dumps(results, indent=1, ensure_ascii=False)
        (KEPT / f"{options.name}.json").write_text(f"{text}\n")
    readme = README.read_text()
    wanted = written(readme)
    if options.check:
        differs = "README.md: its tables are not those of the kept results."
        sys.exit(0 if readme == wanted else differs)
    README.write_text(wanted)


if __name__ == "__main__":
    main()
