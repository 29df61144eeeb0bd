"""The same systems in two runs, compared on the questions that both runs answered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

from malt_jax.evaluation.records import DrawRecord
from malt_jax.evaluation.schema import PairedTest, Results, Row
from malt_jax.evaluation.statistics import holm, majority_vote
from malt_jax.evaluation.units import Units, compare

Draws = Mapping[str, Sequence[DrawRecord]]
"""The draws of each system of one run."""


class Pairing(NamedTuple):
    """A row of the table that both runs have."""

    first: Row
    second: Row
    test: PairedTest | None
    """The second against the first; None without a question that both answered."""


def paired_rows(
    results: tuple[Results, Results],
    draws: tuple[Draws, Draws],
    both: Mapping[str, str],
    clusters: Mapping[str, str] | None = None,
) -> list[Pairing]:
    """The rows that both tables have, each tested on the questions in common.

    `both` gives the second run's id of each question of the first that is the same question. Rows
    are paired by name, which is the system and its votes. Holm's correction is over all of them.
    `clusters`: of questions of the first that are not independent, as in `Units`.
    """
    rows = [{row["name"]: row for row in one["systems"]} for one in results]
    names = [name for name in rows[0] if name in rows[1]]
    if not both:
        return [Pairing(rows[0][name], rows[1][name], None) for name in names]
    units = Units([(0, question) for question in both], clusters or {})
    found = []
    for name in names:
        system, votes = rows[0][name]["system"], rows[0][name]["votes"]
        before = _voted(draws[0][system], votes, list(both))
        after = _voted(draws[1][system], votes, list(both.values()))
        found.append(compare(before, after, units, results[0]["confidence"]))
    corrected = holm([test["p"] for test in found])
    return [
        Pairing(rows[0][name], rows[1][name], {**test, "p_holm": p})
        for name, test, p in zip(names, found, corrected, strict=True)
    ]


def _voted(
    records: Sequence[DrawRecord], votes: int, questions: Sequence[str]
) -> Bool[np.ndarray, " Q"]:
    """Whether the majority of the first `votes` draws is right, question by question."""
    drawn: dict[str, list[DrawRecord]] = {}
    for record in sorted(records, key=lambda record: record.draw):
        drawn.setdefault(record.question_id, []).append(record)
    right = []
    for question in questions:
        used = drawn[question][:votes]
        right.append(used[majority_vote([record.prediction for record in used]).draw].correct)
    return np.array(right, bool)
