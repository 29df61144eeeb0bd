"""Credit signals of a run's nodes: how they are spread, and how well they agree with the values."""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from malt_jax.credit.signals import SIGNALS
from malt_jax.evaluation.table import Table, numbers, texts
from malt_jax.report import figures
from malt_jax.report.drawing import Gallery
from malt_jax.storage.jsonl import read_lines

DRAWN = ("advantage", "confidence", "influence")
"""Signals that get a figure; the others have few values or are one of these on another scale."""


def summaries(run: Path, gallery: Gallery) -> list[dict[str, Any]]:
    """For each labelled round: a table with a row per role and signal, and figures."""
    found = []
    for path in sorted(run.glob("rounds/*/credit/signals.jsonl")):
        round = int(path.parent.parent.name)
        values = read_signals(path)
        by_signal: dict[str, dict[str, array]] = defaultdict(dict)
        for (role, name), (own, _) in values.items():
            by_signal[name][role] = own
        drawn = [
            gallery.add(f"signal {name} {round}", figures.signal_spread(name, by_signal[name]))
            for name in DRAWN
            if name in by_signal
        ]
        found.append({"round": round, "table": signal_table(values), "figures": drawn})
    return found


def read_signals(path: Path) -> dict[tuple[str, str], tuple[array, array]]:
    """(role, signal) -> the signal of each node that has it, and the value of that node."""
    # Arrays of machine numbers: a forest has millions of nodes, and lists would take eight times
    # the memory.
    found: dict[tuple[str, str], tuple[array, array]] = defaultdict(
        lambda: (array("d"), array("d"))
    )
    for row in read_lines(path, needs=("role", "value")):
        for name in SIGNALS.keys() & row.keys():
            own, value = found[row["role"], name]
            own.append(row[name])
            value.append(row["value"])
    order = list(SIGNALS)
    return {key: found[key] for key in sorted(found, key=lambda key: order.index(key[1]))}


def signal_table(values: Mapping[tuple[str, str], tuple[array, array]]) -> Table:
    """One row per signal and role: number of nodes, spread, and rank correlation with the value."""
    from scipy import stats

    rows = []
    for (role, name), (own, value) in values.items():
        low, middle, high = np.quantile(own, (0.05, 0.5, 0.95))
        varies = np.ptp(own) > 0 and np.ptp(value) > 0
        rank = stats.spearmanr(own, value).statistic if varies else 0.0
        agreement = f"{rank:+.2f}".replace("-", "−") if varies else ""
        shown = [_digits(number) for number in (np.mean(own), low, middle, high)]
        rows.append([name, role, SIGNALS[name], str(len(own)), *shown, agreement])
    columns = texts("signal", "role", "what it is")
    return Table([*columns, *numbers("nodes", "mean", "5%", "median", "95%", "with value")], rows)


def _digits(number: float) -> str:
    """Three decimals with a minus sign and no hyphen; adding zero removes that of minus zero."""
    return f"{round(float(number), 3) + 0.0:.3f}".replace("-", "−")
