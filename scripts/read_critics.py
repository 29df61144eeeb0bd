"""What critics say of right and of wrong answers, in the stored draws of finished runs.

    python scripts/read_critics.py runs/rules/triples/seed-*

Pools the runs and prints one line for each system whose turns include a critique: how often it
approves of right and of wrong answers (equal shares: its verdict says nothing), how many tokens a
critique has, which share of the verdicts is true, and what becomes of the answers: of right ones
that are approved the share that is kept, of wrong ones after an alarm the share that is mended, of
right ones after a false alarm the share that is kept all the same. Verdicts are read as the
built-in verifier prompts ask for them.
"""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from malt_jax.credit.verdict import read_verdict
from malt_jax.evaluation import cells
from malt_jax.evaluation.records import DrawRecord, TurnRecord
from malt_jax.evaluation.table import Table, numbers, texts
from malt_jax.storage.jsonl import read_records


def draws(run: Path) -> Iterator[tuple[str, Sequence[TurnRecord]]]:
    """(system, turns) of every stored draw of a run and of its ablations."""
    for path in sorted([*run.glob("eval/*.jsonl"), *run.glob("ablations/*/eval/*.jsonl")]):
        for draw in read_records(path, DrawRecord.from_record):
            yield path.stem, draw.turns


def count(turns: Sequence[TurnRecord], counts: Counter[str]) -> None:
    """Adds the critiques of one draw to `counts`."""
    answer: bool | None = None
    for turn in turns:
        if turn.correct is not None:
            answer = turn.correct
        elif answer is not None and (verdict := read_verdict(turn.text)):
            side = "right" if answer else "wrong"
            counts[side] += 1
            counts["tokens"] += turn.tokens
            said = f"{side} {'approved' if verdict.approves else 'alarmed'}"
            counts[said] += 1
            counts[f"{said}, ends right"] += bool(turns[-1].correct)


def table(runs: list[Path]) -> Table:
    """One line per system, over all runs."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for run in runs:
        for system, turns in draws(run):
            count(turns, counts[system])
    columns = texts("system") + numbers(
        "verdicts", "tokens", "approves right %", "approves wrong %", "true %",
        "kept when approved %", "mended after an alarm %", "kept after a false alarm %",
    )  # fmt: skip

    def percent(part: float, whole: float) -> str:
        return cells.percent(part / whole) if whole else ""

    lines = []
    for system, n in counts.items():
        if total := n["right"] + n["wrong"]:
            true = n["right approved"] + n["wrong"] - n["wrong approved"]
            lines.append([
                system, f"{total:,}", f"{n['tokens'] / total:.1f}",
                percent(n["right approved"], n["right"]), percent(n["wrong approved"], n["wrong"]),
                percent(true, total),
                *(percent(n[f"{said}, ends right"], n[said])
                  for said in ("right approved", "wrong alarmed", "right alarmed")),
            ])  # fmt: skip
    return Table(columns, lines)


def main() -> None:
    """Prints the table of the runs that are named."""
    runs = [Path(word) for word in sys.argv[1:]]
    if not runs or not all(run.is_dir() for run in runs):
        sys.exit(__doc__)
    print(table(runs).markdown())


if __name__ == "__main__":
    main()
