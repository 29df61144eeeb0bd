"""Several evaluations of the same policies in one table, such as a transfer to other tasks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from malt_jax.evaluation import cells
from malt_jax.evaluation.schema import Results, Row
from malt_jax.evaluation.table import Table, numbers, texts

OWN = "run"
"""The name of the column with a run's own results."""


@dataclass(frozen=True)
class Column:
    """One evaluation: its name, what was asked, and its results."""

    name: str
    task: str
    split: str
    results: Results

    @classmethod
    def of(cls, name: str, results: Results) -> Column:
        """The column of results that say themselves what was asked."""
        run = results["run"]
        # Where another split than `eval` was measured, the results name it.
        return cls(name, str(run.get("task", "")), str(run.get("split", "eval")), results)


def transfer_table(columns: Sequence[Column]) -> Table:
    """Accuracy of every row in every evaluation, with the difference at equal calls.

    A cell reads `81.2 (78.1 to 84.0) +3.1*`: accuracy, interval, points above the single agent that
    votes over as many calls, and a star where p < 0.05 after Holm's correction.
    """
    rows: dict[str, dict[int, str]] = {}
    labels: dict[str, str] = {}
    for number, column in enumerate(columns):
        for row in column.results["systems"]:
            rows.setdefault(row["name"], {})[number] = _cell(row)
            labels.setdefault(row["name"], row["label"])
    headings = [_heading(column) for column in columns]
    return Table(
        [*texts("system"), *numbers(*headings)],
        [
            [labels[name], *(found.get(number, "") for number in range(len(columns)))]
            for name, found in rows.items()
        ],
    )


def _heading(column: Column) -> str:
    asked = column.task + (f" ({column.split})" if column.split != "eval" else "")
    # An evaluation that is named after its task needs no second name.
    named = re.search(rf"(?<!\w){re.escape(asked)}(?!\w)", column.name)
    asked = column.name if named else f"{column.name}: {asked}"
    seen = column.results["run"].get("train_questions_evaluated") or 0
    warning = f", {seen} TRAINED ON" if seen else ""
    return f"{asked}, {column.results['questions']} questions{warning}"


def _cell(row: Row) -> str:
    text = f"{cells.percent(row['accuracy'])} ({cells.interval(row['interval'])})"
    if test := row["tests"].get(row["equal_calls_baseline"]):
        text += f" {cells.points(test['delta'])}" + "*" * (test["p_holm"] < 0.05)
    return text


def transfer_values(columns: Sequence[Column], trained_on: str) -> dict[str, Any]:
    """The numbers of the table, the content of `evals/table.json`."""
    return {
        "trained_on": trained_on,
        "evaluations": [
            {
                "name": column.name,
                "task": column.task,
                "split": column.split,
                "questions": column.results["questions"],
                "train_questions_evaluated": column.results["run"].get("train_questions_evaluated"),
                "systems": {row["name"]: _values(row) for row in column.results["systems"]},
            }
            for column in columns
        ],
    }


def _values(row: Row) -> dict[str, Any]:
    test = row["tests"].get(row["equal_calls_baseline"])
    return {
        "accuracy": row["accuracy"],
        "interval": row["interval"],
        "calls": row["calls"],
        "tokens": row["tokens"],
        "equal_calls_delta": test["delta"] if test else None,
        "equal_calls_p_holm": test["p_holm"] if test else None,
    }
