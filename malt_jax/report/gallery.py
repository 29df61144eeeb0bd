"""The figures of one report: each is shown in the page and saved as files under a name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from malt_jax.report.drawing import inline_svg, save, svg_file, to_svg
from malt_jax.storage import atomic

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

    from matplotlib.figure import Figure


class Gallery:
    """Figures by the name of their files, for a paper or a slide."""

    def __init__(self) -> None:
        self._figures: dict[str, tuple[Figure, Element]] = {}

    def add(self, name: str, figure: Figure | None) -> str:
        """Keeps a figure under its name and returns its SVG for the page; "" without a figure."""
        if figure is None:
            return ""
        svg = to_svg(figure)
        # Names hold roles and systems, so they are reduced to what every file system takes.
        self._figures[re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")] = figure, svg
        return inline_svg(svg, str(figure.get_label()))

    def write(self, folder: Path) -> None:
        """Replaces the folder by the files of all figures."""
        with atomic.atomic_directory(folder, replace=True) as built:
            for name, (figure, svg) in self._figures.items():
                (built / f"{name}.svg").write_text(svg_file(svg), encoding="utf-8")
                save(figure, built / name)
