"""Where a system's accuracy comes from: its turns, and the levels of difficulty."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from malt_jax.evaluation import statistics


def turns(system: str, records: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Accuracy by turn over all draws, and the flips from each graded turn to the last.

    A turn is graded where every record's turn at that position carries a boolean `correct`. None
    for systems of fewer than two graded turns, and of several agents: their turns have no
    single order.
    """
    roles = [turn["role"] for turn in records[0]["turns"]]
    if roles.count(roles[0]) > 1:
        return None
    length = max(len(record["turns"]) for record in records)
    graded = [turn for turn in range(length) if _is_graded(records, turn, length)]
    if len(graded) < 2:
        return None
    correct = {turn: [record["turns"][turn]["correct"] for record in records] for turn in graded}
    last = graded[-1]
    return {
        "system": system,
        "draws": len(records),
        "accuracy": [
            {"turn": turn, "role": roles[turn], "accuracy": sum(correct[turn]) / len(records)}
            for turn in graded
        ],
        "flips": [
            {
                "from": roles[turn],
                "to": roles[last],
                **vars(statistics.flips(correct[turn], correct[last])),
            }
            for turn in graded[:-1]
        ],
    }


def _is_graded(records: Sequence[Mapping[str, Any]], turn: int, length: int) -> bool:
    return all(
        len(record["turns"]) == length and isinstance(record["turns"][turn].get("correct"), bool)
        for record in records
    )


def levels(
    correct: Mapping[str, np.ndarray],
    questions: Sequence[str],
    level_of: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Accuracy of every row by the level of the question; empty where the task has none.

    `correct[row]` is [units] bool and `questions` the question id of each unit. Questions that
    `level_of` does not name are counted under `none`.
    """
    if not level_of:
        return {}
    own = np.array([str(level_of.get(question, "none")) for question in questions])
    names = np.array(questions)
    return {
        level: {
            "questions": len(set(names[own == level])),
            "accuracy": {row: float(right[own == level].mean()) for row, right in correct.items()},
        }
        for level in sorted(set(own.tolist()), key=_natural)
    }


def _natural(level: str) -> list[tuple[int, str]]:
    """Sorts numbers inside text as numbers, of any length: `Level 2` before `Level 10`."""
    parts = re.split("([0-9]+)", level)  # every second one is digits
    parts[1::2] = [digits.lstrip("0") for digits in parts[1::2]]
    return [(len(part) if i % 2 else 0, part) for i, part in enumerate(parts)]
