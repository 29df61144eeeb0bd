"""The table of what a forest can teach each role, as cells."""

from __future__ import annotations

from collections.abc import Mapping

from malt_jax.credit.contrast import RoleContrast
from malt_jax.evaluation import cells
from malt_jax.evaluation.table import Table, numbers, texts

NOTE = (
    "Contrast: share of prefixes, in %, whose siblings have both labels; differing: whose siblings "
    "have different values; in brackets what is expected if the role's turns changed nothing, "
    "which last turns cannot tell. After wrong, right: share of the turns after a wrong answer "
    "that end right, and of those after a right answer that end wrong. After right: share of the "
    "positive turns (V > theta) that are after a right answer, in brackets of all turns. "
    "Verdicts: share of the turns with a readable verdict; fit: share of these that fit the answer "
    "they judge, in brackets if every one approved. Influence: nats per token that the turn "
    "before adds. KL at temperature 1: divergence from the start of training, nats per token."
)
"""What the columns mean."""


def contrast_table(
    found: Mapping[str, RoleContrast], pairs: Mapping[str, int] | None = None
) -> Table:
    """One row per role; `pairs`: preference pairs that were selected, by role."""

    def share(value: float | None) -> str:
        return "" if value is None else cells.percent(value)

    def beside(value: float | None, base: float | None) -> str:
        return share(value) + (
            f" ({share(base)})" if value is not None and base is not None else ""
        )

    rows = []
    for role, one in found.items():
        influence, moved, tokens = one["influence"], one["divergence"], one["tokens"]
        rows.append(
            [
                role,
                str(one["prefixes"]),
                beside(one["contrast"], one["contrast_by_chance"]),
                beside(one["differing"], one["differing_by_chance"]),
                share(one["right_after_wrong"]),
                share(one["wrong_after_right"]),
                str(one["positives"]),
                beside(one["positives_after_right"], one["after_right"]),
                "" if pairs is None else str(pairs.get(role, 0)),
                share(one["verdicts"]),
                beside(one["verdict"], one["verdict_if_approving"]),
                "" if influence is None else f"{influence:.3f}",
                "" if moved is None else f"{moved:.3f}",
                "" if tokens is None else f"{tokens:.0f}",
                share(one["cut"]),
                share(one["unread"]),
            ]
        )
    columns = texts("role") + numbers(
        "prefixes",
        "contrast (by chance)",
        "differing (by chance)",
        "wrong -> right",
        "right -> wrong",
        "positives",
        "after right (of all)",
        "pairs",
        "verdicts",
        "fit (if approving)",
        "influence",
        "KL",
        "tokens",
        "cut",
        "unread",
    )
    kept = [i for i in range(len(columns)) if i == 0 or any(row[i] for row in rows)]
    return Table([columns[i] for i in kept], [[row[i] for i in kept] for row in rows])
