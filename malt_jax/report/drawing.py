"""The look of the figures: matplotlib axes in the page's palette, saved as SVG, PDF and PNG.

A figure is drawn once on white. The page gets its SVG with the palette's colours replaced by the
page's CSS variables, so that one drawing serves the light and the dark theme. Nothing in a figure
depends on the time or the process, so that the report of the same run is the same file.
"""

from __future__ import annotations

import io
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from malt_jax.escape import one_line

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
    "value-mid": "#eeece6",
    "value-high": "#6aa5dc",
}
"""The palette (the hues of Okabe and Ito, toned down): distinct for colour-blind readers too."""
STYLE = {
    "axes.labelcolor": COLOURS["muted"],
    "axes.labelsize": 12,
    **{f"axes.spines.{side}": False for side in ("left", "right", "top", "bottom")},
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "figure.dpi": 72,  # so that a point, the unit of the SVG, is a pixel
    "font.family": "sans-serif",
    "font.size": 12,
    "grid.color": COLOURS["line"],
    "lines.linewidth": 1.75,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "malt",  # the ids of shared shapes are the same every time
    "text.color": COLOURS["muted"],
    "text.parse_math": False,  # a dollar sign in a name does not begin a formula
    "xtick.color": COLOURS["muted"],
    "xtick.major.pad": 9,
    "xtick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.color": COLOURS["muted"],
    "ytick.major.pad": 8,
    "ytick.major.size": 0,
}
FORMATS = {
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    "png": {"Software": None},
}
"""The formats of a figure's files, with the metadata that would differ from run to run removed."""
PNG_DPI = 216
TIP = "tip:"


@contextmanager
def styled() -> Iterator[None]:
    """The style of the figures, as a decorator of what draws one."""
    import matplotlib

    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it announces its font cache
    with warnings.catch_warnings(), matplotlib.rc_context(STYLE):
        # Names may have characters that the font lacks; PDF and PNG show a box there.
        warnings.filterwarnings("ignore", message="Glyph .* missing", category=UserWarning)
        yield


def axes(
    title: str, width: int, height: int, left: int, right: int, top: int, bottom: int = 40
) -> Axes:
    """Empty axes with margins in pixels; `title` is what a screen reader says of the figure."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / 72, height / 72))
    figure.set_label(one_line(title))
    size = ((width - left - right) / width, (height - top - bottom) / height)
    plot = figure.add_axes((left / width, bottom / height, *size))
    plot.patch.set_visible(False)
    plot.set_axisbelow(True)
    return plot


def value_colour(value: float) -> str:
    """The colour of a node value: orange at 0, neutral at one half, blue at 1."""
    return _VALUE_COLOURS[round(100 * value)][0]


def _value_colour(percent: int) -> tuple[str, str]:
    """The colour of a value as #rrggbb, and as CSS that follows the page's theme."""
    end = "value-low" if percent < 50 else "value-high"
    share = abs(percent - 50) / 50
    pairs = zip(*(bytes.fromhex(COLOURS[name][1:]) for name in (end, "value-mid")), strict=True)
    mixed = "#" + "".join(f"{round(share * a + (1 - share) * b):02x}" for a, b in pairs)
    return mixed, f"color-mix(in oklab,var(--{end}) {100 * share:.0f}%,var(--value-mid))"


_VALUE_COLOURS = [_value_colour(percent) for percent in range(101)]
_THEMED = {colour: css for colour, css in _VALUE_COLOURS} | {
    colour: f"var(--{name},{colour})" for name, colour in COLOURS.items()
}


def tip(artist: Artist, text: str) -> None:
    """Lets an artist say what it is when it is pointed at in the SVG."""
    artist.set_gid(TIP + one_line(text))


@styled()
def save(figure: Figure, path: Path) -> None:
    """Writes the figure as PDF and PNG beside `path`."""
    for suffix in ("pdf", "png"):
        figure.savefig(path.with_suffix(f".{suffix}"), metadata=FORMATS[suffix], dpi=PNG_DPI)


@styled()
def to_svg(figure: Figure) -> str:
    """The figure as an SVG file: matplotlib's, with tips and without what says nothing."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=FORMATS["svg"])
    svg = re.sub(r"<metadata>.*?</metadata>", "", buffer.getvalue(), flags=re.DOTALL)
    svg = re.sub(r"font-family: [^;\"]*", "font-family: sans-serif", svg)
    svg = re.sub(r' transform="rotate\(-?0 [^"]*"', "", svg)
    svg = re.sub(r"\s*\n\s*", " ", svg).replace("> <", "><")
    # matplotlib has no tips, but it writes an artist's id as the id of its group.
    return re.sub(f' id="{TIP}([^"]*)">', r"><title>\1</title>", svg) + "\n"


def inline_svg(svg: str, title: str) -> str:
    """An SVG file as an element of the page, in the colours and the font of its theme."""
    _, _, svg = svg.partition("<svg ")
    head, _, marks = svg.partition(">")
    box = re.search(r'viewBox="0 0 ([\d.]+) [\d.]+"', head)
    assert box is not None, "matplotlib writes a viewBox"
    marks = re.sub(r"<defs><style.*?</style></defs>", "", marks, count=1)
    marks = re.sub(r'<g id="patch_1">.*?</g>', "", marks, count=1)  # the white ground
    marks = re.sub(r' id="[a-zA-Z]+[a-z0-9.]*_\d+"', "", marks)  # of groups, equal in all figures
    marks = marks.replace("<g/>", "").replace("font-family: sans-serif; ", "")
    marks = re.sub("#[0-9a-f]{6}", lambda found: _THEMED.get(found[0], found[0]), marks)
    return (
        f'<svg class="plot" role="img" aria-label="{escape(title)}" {box[0]} '
        f'style="max-width:{box[1]}px">{marks.strip()}'
    )
