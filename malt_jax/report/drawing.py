"""The look of the figures: matplotlib axes in the page's palette, saved as SVG, PDF and PNG.

A figure is drawn once on white. The page gets its SVG with the palette's colours replaced by the
page's CSS variables, so that one drawing serves the light and the dark theme. Nothing in a figure
depends on the time or the process, so that the report of the same run is the same file.
"""

from __future__ import annotations

import copy
import io
import logging
import re
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from malt_jax.escape import one_line
from malt_jax.storage import atomic

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {
    "ink": "#1d1f23",
    "muted": "#6b7078",
    "line": "#dedfdc",
    "blue": "#2f6fb3",
    "orange": "#c8641b",
    "green": "#3a8a6b",
    "purple": "#8a5fa8",
    "gold": "#a98307",
    "grey": "#8d9299",
    "value-low": "#e58e55",
    "value-high": "#6aa5dc",
}
"""The palette (the hues of Okabe and Ito, toned down): distinct for colour-blind readers too."""
STYLE = Path(__file__).with_name("figures.mplstyle")
FORMATS = {
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    "png": {"Software": None},
}
"""The formats of a figure's files, with the metadata that would differ from run to run removed."""
TOOLTIP = "tooltip:"
"""Begins the ids of artists that have a tooltip."""
SVG = "{http://www.w3.org/2000/svg}"
XLINK_HREF = "{http://www.w3.org/1999/xlink}href"
# ElementTree would otherwise invent prefixes (`ns0:svg`), which mean nothing in HTML.
ElementTree.register_namespace("", SVG[1:-1])
ElementTree.register_namespace("xlink", XLINK_HREF[1:-5])


@contextmanager
def styled() -> Iterator[None]:
    """The style of the figures, as a decorator of what draws one."""
    import matplotlib

    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it announces its font cache
    with warnings.catch_warnings(), matplotlib.rc_context(fname=STYLE):
        # Names may have characters that the font lacks; PDF and PNG show a box there.
        warnings.filterwarnings("ignore", message="Glyph .* missing", category=UserWarning)
        yield


def axes(
    title: str,
    width: int,
    height: int,
    left: int = 44,
    right: int = 10,
    top: int = 34,
    bottom: int = 44,
) -> tuple[Figure, Axes]:
    """A figure with empty axes, sizes in pixels; `title` is what a screen reader says of it."""
    from matplotlib.figure import Figure

    # matplotlib measures in inches and its SVG in units of 1/72 inch: one unit is one pixel here.
    figure = Figure(figsize=(width / 72, height / 72))
    figure.set_label(plain(title))
    size = ((width - left - right) / width, (height - top - bottom) / height)
    return figure, figure.add_axes((left / width, bottom / height, *size))


_THEMED = {colour: f"var(--{name})" for name, colour in COLOURS.items()}


def plain(text: str) -> str:
    """Text from anywhere as one line that XML can hold."""
    return re.sub("[\ufffe\uffff]", "\ufffd", one_line(text))


def tooltip(artist: Artist, text: str) -> None:
    """Gives an artist a tooltip in the SVG."""
    artist.set_gid(TOOLTIP + plain(text))


@styled()
def save(figure: Figure, path: Path) -> None:
    """Writes the figure as PDF and PNG beside `path`."""
    for suffix in ("pdf", "png"):
        figure.savefig(path.with_suffix(f".{suffix}"), metadata=FORMATS[suffix])


@styled()
def to_svg(figure: Figure) -> ElementTree.Element:
    """The figure as the root element of an SVG file: matplotlib's, smaller and with tooltips."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata=FORMATS["svg"])
    root = ElementTree.fromstring(buffer.getvalue())
    root[:] = [child for child in root if child.tag != f"{SVG}metadata"]
    # A list is made first, because elements are removed on the way.
    for element in list(root.iter()):
        if not (element.text or "").strip():
            element.text = None
        element.tail = None
        for child in list(element):
            if child.tag == f"{SVG}g" and len(child) == 0:
                element.remove(child)
        # matplotlib has no tooltips, but it writes an artist's id as the id of its group.
        if element.get("id", "").startswith(TOOLTIP):
            title = ElementTree.Element(f"{SVG}title")
            title.text = element.attrib.pop("id").removeprefix(TOOLTIP)
            element.insert(0, title)
        if element.get("transform", "").startswith(("rotate(0 ", "rotate(-0 ")):
            del element.attrib["transform"]
        for name, numbers in element.items():
            if name in ("d", "x", "y"):  # cut to hundredths of a pixel
                element.set(name, re.sub(r"(\.\d\d)\d+", r"\1", " ".join(numbers.split())))
    return root


def svg_file(root: ElementTree.Element) -> str:
    """The text of an SVG file."""
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def inline_svg(root: ElementTree.Element, title: str) -> str:
    """An SVG file as an element of the page, in the font of the page and the theme's colours."""
    # The file keeps its own style, and only this copy is changed.
    root = copy.deepcopy(root)
    # The first child is a style sheet, which would hold for the whole page. The second one is the
    # figure, whose first child is the white ground.
    del root[0], root[0][0]
    for element in root.iter():
        if element.tag == f"{SVG}g":
            element.attrib.pop("id", None)  # the groups of all figures have the same ids
        if XLINK_HREF in element.attrib:
            element.set("href", element.attrib.pop(XLINK_HREF))
        if style := element.get("style"):
            style = re.sub("#[0-9a-f]{6}", lambda found: _THEMED.get(found[0], found[0]), style)
            element.set("style", re.sub(r"font-(family|size): [^;]*;? ?", "", style))
    box = root.attrib["viewBox"]
    width = box.split()[2]
    # Of the size only the `viewBox` stays, so that the figure can shrink on a narrow screen.
    root.attrib.clear()
    root.attrib |= {"class": "plot", "role": "img", "aria-label": title, "viewBox": box}
    root.set("style", f"max-width:{width}px")
    return ElementTree.tostring(root, encoding="unicode")


class Gallery:
    """Figures by the name of their files, for a paper or a slide."""

    def __init__(self) -> None:
        self._figures: dict[str, tuple[Figure, ElementTree.Element]] = {}

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
