"""How numbers are written in tables, and a table of Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from malt_jax import escape


@dataclass(frozen=True)
class Column:
    """One column of a table: its heading, and whether its cells are numbers."""

    heading: str
    number: bool = True


def percent(share: float) -> str:
    """`81.2`"""
    return f"{100 * share:.1f}"


def points(share: float) -> str:
    """A difference in percentage points, with its sign: `+9.8`, `−1.0`."""
    # Adding zero takes the sign of what rounds to minus zero.
    return f"{round(100 * share, 1) + 0.0:+.1f}".replace("-", "−")


def interval(bounds: list[float], signed: bool = False) -> str:
    """`78.1 to 84.0`, in percent."""
    return " to ".join((points if signed else percent)(bound) for bound in bounds)


def probability(p: float) -> str:
    """A p-value with two digits: `0.034`, `2.1e-07`; `<1e-15` below what is worth telling."""
    if p < 1e-15:
        return "<1e-15"
    return f"{p:.1e}" if p < 0.001 else f"{p:.3f}"


def seconds(duration: float) -> str:
    """Two decimals, and below a second two digits: `12.34`, `0.0061`."""
    return f"{duration:.2f}" if duration >= 1 else f"{duration:.2g}"


def markdown_table(head: Sequence[Column], body: Sequence[Sequence[str]]) -> str:
    """A table of Markdown. Numbers are ours and stand as they are; other text may be anybody's."""
    rule = ["---:" if column.number else ":---" for column in head]
    cells = [
        [
            cell if column.number else escape.markdown(cell)
            for column, cell in zip(head, line, strict=True)
        ]
        for line in body
    ]
    lines = [[escape.markdown(column.heading) for column in head], rule, *cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
