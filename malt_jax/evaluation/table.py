"""A table of text cells, written as Markdown, LaTeX or CSV, or printed by `rich`.

Cells of number columns are the package's own and are written as they are. All other text may come
from anywhere and is escaped.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from malt_jax import escape

if TYPE_CHECKING:
    import rich.table


@dataclass(frozen=True)
class Column:
    """One column of a table: its heading, and whether its cells are numbers."""

    heading: str
    is_number: bool


def numbers(*headings: str) -> list[Column]:
    """Columns of numbers, aligned to the right."""
    return [Column(heading, True) for heading in headings]


def texts(*headings: str) -> list[Column]:
    """Columns of text, aligned to the left."""
    return [Column(heading, False) for heading in headings]


@dataclass(frozen=True)
class Table:
    """Columns, and rows with one cell per column."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """A table of GitHub's Markdown."""
        rule = ["---:" if column.is_number else ":---" for column in self.columns]
        lines = [self._headings(escape.markdown), rule, *self._escaped(str, escape.markdown)]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)

    def plain(self) -> list[str]:
        """One line of text per row, the headings first, with columns as wide as they need."""
        lines = [self._headings(escape.one_line), *self._escaped(str, escape.one_line)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        aligned = [str.rjust if column.is_number else str.ljust for column in self.columns]
        return [
            "  ".join(
                align(cell, width) for align, cell, width in zip(aligned, line, widths, strict=True)
            ).rstrip()
            for line in lines
        ]

    def latex(self) -> str:
        """A `tabular` for a paper; needs the package `booktabs`."""

        def cell(text: str) -> str:
            # In math mode, because text fonts need not have these two characters.
            return escape.latex(text).replace("→", r"$\to$").replace("−", "$-$")

        def line(cells: Sequence[str]) -> str:
            return " & ".join(cells) + r" \\"

        alignment = "".join("r" if column.is_number else "l" for column in self.columns)
        return "\n".join(
            [
                rf"\begin{{tabular}}{{{alignment}}}",
                r"\toprule",
                line(self._headings(cell)),
                r"\midrule",
                *map(line, self._escaped(cell, cell)),
                r"\bottomrule",
                r"\end{tabular}",
            ]
        )

    def csv(self) -> str:
        """The cells for a spreadsheet, which shall read numbers as numbers and run no formula."""

        def number(cell: str) -> str:
            # A spreadsheet would read a number with the tables' minus sign as text.
            return cell.replace("−", "-")

        lines = [self._headings(escape.csv), *self._escaped(number, escape.csv)]
        return "".join(",".join(line) + "\r\n" for line in lines)

    def terminal(
        self, caption: str = "", bold: Container[int] = (), whole_numbers: bool = False
    ) -> rich.table.Table:
        """The table as `rich` prints it.

        `bold`: indices of rows; `whole_numbers`: cells of numbers stay on one line.
        """
        from rich.table import Table as RichTable
        from rich.text import Text

        # Text and not a string, because `rich` would read square brackets in it as markup.
        table = RichTable(
            box=None, pad_edge=False, header_style="bold", caption_justify="left",
            caption=Text(caption) if caption else None,
        )  # fmt: skip
        for heading, column in zip(self._headings(escape.one_line), self.columns, strict=True):
            table.add_column(
                Text(heading),
                justify="right" if column.is_number else "left",
                no_wrap=column.is_number and whole_numbers,
            )
        for index, row in enumerate(self.rows):
            style = "bold" if index in bold else ""
            table.add_row(*(Text(escape.one_line(cell)) for cell in row), style=style)
        return table

    def _headings(self, escaped: Callable[[str], str]) -> list[str]:
        return [escaped(column.heading) for column in self.columns]

    def _escaped(self, number: Callable[[str], str], text: Callable[[str], str]) -> list[list[str]]:
        return [
            [
                (number if column.is_number else text)(cell)
                for column, cell in zip(self.columns, row, strict=True)
            ]
            for row in self.rows
        ]
