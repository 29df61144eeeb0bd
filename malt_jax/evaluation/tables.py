"""`results.json` as Markdown, LaTeX, CSV and a terminal table.

All four print the same rows from the same cells. Every row states its calls and generated tokens a
question, and is tested against the single agent that votes over as many calls.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from malt_jax import escape
from malt_jax.evaluation.cells import (
    Column,
    interval,
    markdown_table,
    percent,
    points,
    probability,
)
from malt_jax.evaluation.sections import sections

if TYPE_CHECKING:
    from rich.table import Table

Results = Mapping[str, Any]


def columns(results: Results) -> list[Column]:
    """Those of the table; where seeds are pooled, with one for the accuracy under each."""
    names = ["calls", "tokens", "accuracy %", "interval"]
    names += [f"seed {seed}" for seed in _pooled(results)]
    tested = ["difference", "interval", "wrong→right", "right→wrong", "p", "p (Holm)"]
    against = Column("against", number=False)
    return [Column("system", number=False), *map(Column, names), against, *map(Column, tested)]


def _pooled(results: Results) -> list[Any]:
    """The seeds, where there are several."""
    return results["seeds"] if len(results["seeds"]) > 1 else []


def rows(results: Results) -> list[list[str]]:
    """The cells of the table, unescaped: one line a system and test."""
    lines = []
    for system in results["systems"]:
        own = [
            system["label"],
            str(system["calls"]),
            f"{system['tokens']:.0f}",
            percent(system["accuracy"]),
            interval(system["interval"]),
            *(percent(system["seeds"][str(seed)]) for seed in _pooled(results)),
        ]
        if not system["tests"]:
            lines.append(own + [""] * (len(columns(results)) - len(own)))
        for other, test in system["tests"].items():
            # Calls and tokens stand on every line, so that no line can be quoted without them.
            equal = other == system["equal_calls_baseline"]
            lines.append(
                [
                    *own,
                    f"{other}, equal calls" if equal else other,
                    points(test["delta"]),
                    interval(test["delta_interval"], signed=True),
                    str(test["wrong_to_right"]),
                    str(test["right_to_wrong"]),
                    probability(test["p"]),
                    probability(test["p_holm"]),
                ]
            )
    return lines


def caption(results: Results) -> str:
    """What the table's numbers mean, in one paragraph."""
    seeds = results["seeds"]
    pooled = len(seeds) > 1
    level = 100 * results["confidence"]
    return (
        f"{results['questions']} questions"
        + (f", {len(seeds)} seeds pooled" if pooled else "")
        + f". Calls and generated tokens are per question. Accuracy with its {level:g}% "
        + ("bootstrap interval over questions" if pooled else "Wilson interval")
        + "; differences in percentage points on the same questions, with a paired bootstrap "
        + "interval; p from the "
        + _test_name(results)
        + ", two-sided, then with Holm's correction over all tests of the table. Each system is "
        + f"tested against {results['baseline']} and against the single agent voting over the "
        + "same number of calls."
    )


def _test_name(results: Results) -> str:
    return "exact sign-flip test over questions" if _pooled(results) else "exact McNemar test"


def facts(run: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What is known of the run as (name, text); of nested facts, those that say something."""
    told = []
    for name, value in run.items():
        if isinstance(value, Mapping):
            parts = [
                str(part)[:16] if key == "fingerprint" else str(part)
                for key, part in value.items()
                if part is not None
            ]
            value = ", ".join(parts)
        if value is not None and value != "":
            told.append((name.replace("_", " "), str(value)))
    return told


def to_markdown(results: Results) -> str:
    """The content of `results.md`."""
    run = ", ".join(f"{key}: {value}" for key, value in facts(results["run"]))
    parts = ["# Results"]
    if run:
        parts.append(escape.markdown(run))
    parts += [markdown_table(columns(results), rows(results)), escape.markdown(caption(results))]
    for heading, table, note in sections(results):
        parts += [f"## {heading}", table, note]
    return "\n\n".join(part for part in parts if part) + "\n"


def to_latex(results: Results) -> str:
    """A `tabular` for a paper; needs the package `booktabs`."""
    head = columns(results)
    alignment = "".join("r" if column.number else "l" for column in head)

    def line(cells: list[str]) -> str:
        cells = [escape.latex(cell).replace("→", r"$\to$").replace("−", "$-$") for cell in cells]
        return " & ".join(cells) + r" \\"

    body = "\n".join(line(cells) for cells in rows(results))
    return (
        f"% {escape.one_line(caption(results))}\n"
        f"\\begin{{tabular}}{{{alignment}}}\n\\toprule\n"
        f"{line([column.heading for column in head])}\n\\midrule\n{body}\n"
        "\\bottomrule\n\\end{tabular}\n"
    )


def to_csv(results: Results) -> str:
    """The same cells for a spreadsheet."""
    head = columns(results)

    def line(cells: list[str]) -> str:
        # Our own numbers stay numbers; only text can hold what a spreadsheet would run.
        fields = [
            cell.replace("−", "-") if column.number else escape.csv(cell)
            for column, cell in zip(head, cells, strict=True)
        ]
        return ",".join(fields) + "\r\n"

    top = ",".join(escape.csv(column.heading) for column in head) + "\r\n"
    return top + "".join(line(cells) for cells in rows(results))


def to_terminal(results: Results) -> Table:
    """The table as `rich` prints it: one line a system, tested at equal calls."""
    from rich.table import Table
    from rich.text import Text

    table = Table(
        box=None,
        pad_edge=False,
        header_style="bold",
        caption_justify="left",
        caption=Text(
            "Accuracy in %. vs SA: points above the single agent voting over as many calls, "
            f"with p by the {_test_name(results)} after Holm's correction. "
            "Bold: above it, p < 0.05."
        ),
    )
    for heading in ("system", "calls", "tokens", "accuracy", "interval", "vs SA", "p (Holm)"):
        table.add_column(
            heading,
            justify="left" if heading == "system" else "right",
            no_wrap=heading != "system",  # at 80 columns a long name takes a second line
        )
    for system in results["systems"]:
        test = system["tests"].get(system["equal_calls_baseline"])
        cells = [
            system["label"],
            str(system["calls"]),
            f"{system['tokens']:.0f}",
            percent(system["accuracy"]),
            interval(system["interval"]),
            points(test["delta"]) if test else "",
            probability(test["p_holm"]) if test else "",
        ]
        above = test is not None and test["p_holm"] < 0.05 and test["delta"] > 0
        # Text, not markup: a label with square brackets must stay a label.
        safe = [Text(escape.one_line(cell)) for cell in cells]
        table.add_row(*safe, style="bold" if above else "")
    return table
