"""Where the accuracy of a system comes from: its turns, and the levels of difficulty."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool

from malt_jax.evaluation import statistics
from malt_jax.evaluation.records import DrawRecord
from malt_jax.evaluation.schema import Flip, Level, Turns


def turns(system: str, draws: Sequence[DrawRecord]) -> Turns | None:
    """Accuracy of each graded turn over all draws, and the flips from each of them to the last.

    A turn is graded if every draw states an answer there. None for systems with fewer than two
    graded turns, and for several agents, whose turns have no single order.
    """
    # Where draws were left out, those that remain are of the harder questions, so that only the
    # draws that every question has are counted.
    first_missing = min((draw.draw for draw in draws if not draw.turns), default=len(draws))
    draws = [draw for draw in draws if draw.draw < first_missing]
    # A record lists the turns of one agent after the other, so that with several agents the first
    # role comes back.
    roles = [turn.role for turn in draws[0].turns]
    if roles.count(roles[0]) > 1 or len({draw.calls for draw in draws}) > 1:
        return None
    correct: dict[int, list[bool]] = {}
    for number in range(len(roles)):
        grades = [draw.turns[number].correct for draw in draws]
        if None not in grades:
            correct[number] = [bool(grade) for grade in grades]
    if len(correct) < 2:
        return None
    # The keys are turn numbers in rising order.
    *earlier, last = correct
    return {
        "system": system,
        "draws": len(draws),
        "accuracy": [
            {"turn": number, "role": roles[number], "accuracy": sum(grades) / len(draws)}
            for number, grades in correct.items()
        ],
        "flips": [_flip(roles, correct, number, last) for number in earlier],
    }


def _flip(roles: Sequence[str], correct: Mapping[int, list[bool]], start: int, end: int) -> Flip:
    changed = statistics.flips(correct[start], correct[end])
    return {
        "from": roles[start],
        "to": roles[end],
        "wrong_to_right": changed.wrong_to_right,
        "right_to_wrong": changed.right_to_wrong,
    }


def levels(
    correct: Mapping[str, Bool[np.ndarray, " U"]],
    questions: Sequence[str],
    level_of: Mapping[str, Any] | None,
) -> dict[str, Level]:
    """Accuracy of every row by the level of the question; empty if the task has no levels.

    `correct` has the outcomes of each row over U units, and `questions` the question id of each
    unit. Questions that `level_of` does not name are counted under `none`.
    """
    if not level_of:
        return {}
    level_by_unit = np.array([str(level_of.get(question, "none")) for question in questions])
    names = np.array(questions)
    return {
        level: {
            "questions": len(set(names[level_by_unit == level])),
            "accuracy": {
                row: float(right[level_by_unit == level].mean()) for row, right in correct.items()
            },
        }
        for level in sorted(set(level_by_unit.tolist()), key=natural_order)
    }


def natural_order(text: str) -> list[tuple[int, str]]:
    """Sorting key that compares numbers within text as numbers: `Level 2` before `Level 10`."""
    # Split at numbers: every second part is one. Without leading zeros, a longer number is larger,
    # so numbers of any length are compared without converting them.
    parts = re.split("([0-9]+)", text)
    parts[1::2] = [digits.lstrip("0") for digits in parts[1::2]]
    return [(len(part) if i % 2 else 0, part) for i, part in enumerate(parts)]
