"""`results.json` as Markdown, LaTeX, CSV and a terminal table.

All four print the same rows from the same cells. Every row states its calls and generated tokens a
question, and is tested against the single agent that votes over as many calls.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from malt_jax import escape

if TYPE_CHECKING:
    from rich.table import Table

Results = Mapping[str, Any]


@dataclass(frozen=True)
class Column:
    """One column of the table: its heading, and whether its cells are numbers."""

    heading: str
    number: bool = True


COLUMNS = (
    Column("system", number=False),
    Column("calls"),
    Column("tokens"),
    Column("accuracy %"),
    Column("interval"),
    Column("against", number=False),
    Column("difference"),
    Column("interval"),
    Column("wrong→right"),
    Column("right→wrong"),
    Column("p"),
    Column("p (Holm)"),
)


def percent(share: float) -> str:
    """`81.2`"""
    return f"{100 * share:.1f}"


def points(share: float) -> str:
    """A difference in percentage points, with its sign: `+9.8`, `−1.0`."""
    return f"{100 * share:+.1f}".replace("-", "−")


def interval(bounds: list[float], signed: bool = False) -> str:
    """`78.1 to 84.0`, in percent."""
    return " to ".join((points if signed else percent)(bound) for bound in bounds)


def probability(p: float) -> str:
    """A p-value with two digits: `0.034`, `2.1e-07`; `<1e-15` below what is worth telling."""
    if p < 1e-15:
        return "<1e-15"
    return f"{p:.1e}" if p < 0.001 else f"{p:.3f}"


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
        ]
        if not system["tests"]:
            lines.append(own + [""] * (len(COLUMNS) - len(own)))
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
        + "interval; p from "
        + ("the exact sign-flip test over questions" if pooled else "the exact McNemar test")
        + ", two-sided, then with Holm's correction over all tests of the table. Each system is "
        + f"tested against {results['baseline']} and against the single agent voting over the "
        + "same number of calls."
    )


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
    head = [column.heading for column in COLUMNS]
    rule = ["---:" if column.number else ":---" for column in COLUMNS]
    # Numbers are ours; names and labels may be anybody's.
    body = [
        [
            cell if column.number else escape.markdown(cell)
            for column, cell in zip(COLUMNS, line, strict=True)
        ]
        for line in rows(results)
    ]
    lines = ["| " + " | ".join(line) + " |" for line in [head, rule, *body]]
    run = ", ".join(f"{key}: {value}" for key, value in facts(results["run"]))
    parts = ["# Results"]
    if run:
        parts.append(escape.markdown(run))
    parts += ["\n".join(lines), escape.markdown(caption(results)), _counts(results)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _counts(results: Results) -> str:
    """What went wrong in producing answers, as a second Markdown table."""
    lines = ["| system | answers not parsed | draws cut at the limit | ties | seconds |"]
    lines.append("| :--- | ---: | ---: | ---: | ---: |")
    for system in results["systems"]:
        seconds = "" if system["seconds"] is None else f"{system['seconds']:.2f}"
        lines.append(
            f"| {escape.markdown(system['label'])} | {system['unparsed']} | {system['truncated']} "
            f"| {system['ties']} | {seconds} |"
        )
    return "\n".join(lines)


def to_latex(results: Results) -> str:
    """A `tabular` for a paper; needs the package `booktabs`."""
    alignment = "".join("r" if column.number else "l" for column in COLUMNS)

    def line(cells: list[str]) -> str:
        cells = [escape.latex(cell).replace("→", r"$\to$").replace("−", "$-$") for cell in cells]
        return " & ".join(cells) + r" \\"

    body = "\n".join(line(cells) for cells in rows(results))
    return (
        f"% {escape.one_line(caption(results))}\n"
        f"\\begin{{tabular}}{{{alignment}}}\n\\toprule\n"
        f"{line([column.heading for column in COLUMNS])}\n\\midrule\n{body}\n"
        "\\bottomrule\n\\end{tabular}\n"
    )


def to_csv(results: Results) -> str:
    """The same cells for a spreadsheet."""

    def line(cells: list[str]) -> str:
        # Our own numbers stay numbers; only text can hold what a spreadsheet would run.
        fields = [
            cell.replace("−", "-") if column.number else escape.csv(cell)
            for column, cell in zip(COLUMNS, cells, strict=True)
        ]
        return ",".join(fields) + "\r\n"

    head = ",".join(escape.csv(column.heading) for column in COLUMNS) + "\r\n"
    return head + "".join(line(cells) for cells in rows(results))


def to_terminal(results: Results) -> Table:
    """The table as `rich` prints it: one line a system, tested at equal calls."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold", caption_justify="left")
    for heading in (
        "system",
        "calls",
        "tokens",
        "accuracy %",
        "interval",
        "at equal calls",
        "p (Holm)",
    ):
        table.add_column(heading, justify="left" if heading == "system" else "right")
    for system in results["systems"]:
        test = system["tests"].get(system["equal_calls_baseline"])
        cells = [
            system["label"],
            str(system["calls"]),
            f"{system['tokens']:.0f}",
            percent(system["accuracy"]),
            interval(system["interval"]),
            f"{points(test['delta'])} vs {system['equal_calls_baseline']}" if test else "",
            probability(test["p_holm"]) if test else "",
        ]
        above = test is not None and test["p_holm"] < 0.05 and test["delta"] > 0
        # Text, not markup: a label with square brackets must stay a label.
        safe = [Text(escape.one_line(cell)) for cell in cells]
        table.add_row(*safe, style="bold" if above else "")
    return table
