"""The table of what a forest can teach each role, as cells."""

from __future__ import annotations

from collections.abc import Mapping

from malt_jax.credit.contrast import RoleContrast
from malt_jax.evaluation import cells
from malt_jax.evaluation.table import Table, numbers, texts

NOTE = (
    "Contrast: share of prefixes, in %, whose siblings have both labels; differing: whose siblings "
    "have different values. Behind wrong, right: share of the turns behind a wrong answer that end "
    "right, and of those behind a right answer that end wrong. Positives behind right: share of "
    "the positive turns (V > theta) that are behind a right answer. Verdict: share of the readable "
    "verdicts that fit the answer they judge. Influence: nats per token that the turn before adds."
)
"""What the columns mean."""


def contrast_table(
    found: Mapping[str, RoleContrast], pairs: Mapping[str, int] | None = None
) -> Table:
    """One row per role; `pairs`: preference pairs that were selected, by role."""

    def share(value: float | None) -> str:
        return "" if value is None else cells.percent(value)

    rows = []
    for role, one in found.items():
        influence, tokens = one["influence"], one["tokens"]
        rows.append(
            [
                role,
                str(one["prefixes"]),
                share(one["contrast"]),
                share(one["differing"]),
                share(one["right_after_wrong"]),
                share(one["wrong_after_right"]),
                str(one["positives"]),
                share(one["positives_behind_right"]),
                "" if pairs is None else str(pairs.get(role, 0)),
                share(one["verdict"]),
                "" if influence is None else f"{influence:.3f}",
                "" if tokens is None else f"{tokens:.0f}",
                share(one["cut"]),
                share(one["unread"]),
            ]
        )
    columns = texts("role") + numbers(
        "prefixes",
        "contrast",
        "differing",
        "wrong -> right",
        "right -> wrong",
        "positives",
        "behind right",
        "pairs",
        "verdict fits",
        "influence",
        "tokens",
        "cut",
        "unread",
    )
    kept = [i for i in range(len(columns)) if i == 0 or any(row[i] for row in rows)]
    return Table([columns[i] for i in kept], [[row[i] for i in kept] for row in rows])
