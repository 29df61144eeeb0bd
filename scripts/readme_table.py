"""The README's table of results, from the `results.json` of finished runs.

    python scripts/readme_table.py runs/seed-0 runs/seed-1 runs/seed-2

Keeps the runs' rows in `docs/results/quickstart.json` and writes the table between the README's
`results` marks. Without runs it writes the table again from what is kept; `--check` writes nothing
and exits with 1 if the README differs.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
README, KEPT = ROOT / "README.md", ROOT / "docs" / "results" / "quickstart.json"
BEGIN = "<!-- results: written by scripts/readme_table.py from docs/results/quickstart.json -->"
END = "<!-- end of results -->"
ROWS = ("sa", "sa@3", "sa@9", "ma", "ma@3", "star-sa@9", "star-ma", "star-ma@3", "malt", "malt@3")
REFERENCE = "malt@3"


def kept(folders: list[Path]) -> dict[str, Any]:
    """What the table needs of each run."""
    runs = []
    for folder in folders:
        results = json.loads((folder / "results.json").read_text())
        if results["baseline"] != REFERENCE:
            sys.exit(f"{folder}: its baseline is {results['baseline']}, not {REFERENCE}.")
        rows = {row["name"]: row for row in results["systems"] if row["name"] in ROWS}
        runs.append({"run": results["run"], "questions": results["questions"], "rows": rows})
    return {"runs": sorted(runs, key=lambda run: run["run"]["seed"])}


def table(data: dict[str, Any]) -> str:
    """Markdown: accuracy by seed, and the largest p-value of each row against MALT's vote."""
    runs = data["runs"]
    seeds = [run["run"]["seed"] for run in runs]
    head = ["system", "calls", "tokens", *(f"seed {seed}" for seed in seeds), "p against the last"]
    lines = [head, [":---", *["---:"] * (len(head) - 1)]]
    for name in ROWS:
        rows = [run["rows"][name] for run in runs]
        tests = [row["tests"].get(REFERENCE) for row in rows]
        p = max((test["p"] for test in tests if test), default=None)
        tokens = sum(row["tokens"] for row in rows) / len(rows)
        accuracies = [f"{100 * row['accuracy']:.1f}" for row in rows]
        if name == REFERENCE:
            accuracies = [f"**{accuracy}**" for accuracy in accuracies]
        shown = "" if p is None else f"{p:.1e}" if p < 0.001 else f"{p:.3f}"
        lines.append([rows[0]["label"], str(rows[0]["calls"]), f"{tokens:.0f}", *accuracies, shown])
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    questions = runs[0]["questions"]
    return (
        f"{text}\n\nAccuracy in % on the same {questions} held-out questions for every row and "
        "seed; calls and generated tokens are a question; p is the exact McNemar test against the "
        f"last row, the largest of the {len(runs)} seeds. All systems: `results.md` of a run."
    )


def written(readme: str, data: dict[str, Any]) -> str:
    before, rest = readme.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{table(data)}\n{END}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="*", type=Path)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    if options.runs:
        KEPT.write_text(json.dumps(kept(options.runs), indent=1, ensure_ascii=False) + "\n")
    readme = README.read_text()
    wanted = written(readme, json.loads(KEPT.read_text()))
    if options.check:
        sys.exit(0 if readme == wanted else "README.md: its table is not that of the kept results.")
    README.write_text(wanted)


if __name__ == "__main__":
    main()
