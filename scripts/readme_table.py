"""The README's table of results, from pooled runs.

    malt pool runs/seed-0 runs/seed-1 runs/seed-2 --output runs/pooled
    python scripts/readme_table.py runs/pooled

Keeps the table's rows in `docs/results/quickstart.json` and writes the table between the README's
`results` marks. Without a folder it writes the table again from what is kept; `--check` writes
nothing and exits with 1 if the README differs.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from malt_jax.evaluation.cells import interval, percent, probability

ROOT = Path(__file__).parents[1]
README, KEPT = ROOT / "README.md", ROOT / "docs" / "results" / "quickstart.json"
BEGIN = "<!-- results: written by scripts/readme_table.py from docs/results/quickstart.json -->"
END = "<!-- end of results -->"
ROWS = ("sa", "sa@3", "sa@9", "ma", "ma@3", "star-sa@9", "star-ma", "star-ma@3", "malt", "malt@3")
REFERENCE = "malt@3"


def kept(results: dict[str, Any]) -> dict[str, Any]:
    """What the table needs of pooled results, and the hashes of the records they came from."""
    if results["baseline"] != REFERENCE or len(results["seeds"]) < 2:
        sys.exit(f"expected several seeds pooled against {REFERENCE}; see `malt pool --help`.")
    rows = {row["name"]: row for row in results["systems"]}
    facts = ("run", "questions", "seeds", "baseline", "confidence", "records")
    return {**{name: results[name] for name in facts}, "systems": [rows[name] for name in ROWS]}


def table(results: dict[str, Any]) -> str:
    """Markdown: accuracy by seed and pooled, and each row's tests against MALT's vote."""
    seeds = [str(seed) for seed in results["seeds"]]
    head = ["system", "calls", "tokens", *(f"seed {seed}" for seed in seeds), "pooled"]
    head += ["interval", "p, worst seed", "p, pooled"]
    lines = [head, [":---", *["---:"] * (len(head) - 1)]]
    for row in results["systems"]:
        accuracies = [percent(row["seeds"][seed]) for seed in seeds] + [percent(row["accuracy"])]
        if row["name"] == REFERENCE:
            accuracies = [f"**{accuracy}**" for accuracy in accuracies]
        test = row["tests"].get(REFERENCE)
        p = [max(test["seeds"][seed]["p"] for seed in seeds), test["p"]] if test else []
        shown = [probability(value) for value in p] or ["", ""]
        cells = [row["label"], str(row["calls"]), f"{row['tokens']:.0f}", *accuracies]
        lines.append([*cells, interval(row["interval"]), *shown])
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return (
        f"{text}\n\nAccuracy in % on the same {results['questions']} held-out questions for every "
        "row and seed; calls and generated tokens are per question. p compares with the last row "
        "on the same questions: the exact McNemar test of the seed where it is largest, and the "
        "exact sign-flip test over questions with the seeds pooled. All systems: `results.md` of a "
        "run."
    )


def written(readme: str, data: dict[str, Any]) -> str:
    before, rest = readme.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{table(data)}\n{END}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pooled", nargs="?", type=Path)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    if options.pooled:
        results = kept(json.loads((options.pooled / "results.json").read_text()))
        KEPT.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    readme = README.read_text()
    wanted = written(readme, json.loads(KEPT.read_text()))
    if options.check:
        sys.exit(0 if readme == wanted else "README.md: its table is not that of the kept results.")
    README.write_text(wanted)


if __name__ == "__main__":
    main()
