"""The evaluations of a finished run (`RUN/evals`) for its page: one table, and each by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from malt_jax.evaluation import sections, tables
from malt_jax.evaluation.schema import Results
from malt_jax.evaluation.transfer import OWN, Column, transfer_table
from malt_jax.report import figures
from malt_jax.report.drawing import Gallery


def evaluations(
    found: Sequence[Column], own: Results | None, gallery: Gallery
) -> dict[str, Any] | None:
    """What the page shows of a run's evaluations beside its own results; None without any."""
    if not found:
        return None
    columns = [*([Column.of(OWN, own)] if own else []), *found]
    return {
        "table": transfer_table(columns),
        "each": [
            {
                "name": column.name,
                "facts": tables.facts(column.results["run"]),
                "table": tables.results_table(column.results),
                "sections": sections.sections(column.results),
                "figure": gallery.add(
                    f"evaluation {column.name} by temperature",
                    figures.accuracy_by_temperature(column.name, column.results),
                ),
            }
            for column in found
        ],
    }
