"""Small SVG charts: scales, axes and marks as text, themed by CSS variables.

A chart takes its colours from the page it stands in (`--ink`, `--blue`, ...), so one drawing serves
the light and the dark theme; each variable has a fallback for a chart saved as a file of its own.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from xml.sax.saxutils import escape, quoteattr

from malt_jax.escape import one_line

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
"""The palette (Okabe and Ito's hues, toned down): distinct for colour-blind readers too."""


MARGIN = 12
"""White pixels around a chart that is a file of its own."""
_VARIABLE = re.compile(r"var\(--[a-z-]+,(#[0-9a-f]{6})\)")
_MIX = re.compile(r"color-mix\(in oklab, (#[0-9a-f]{6}) (\d+)%, (#[0-9a-f]{6})\)")


def colour(name: str) -> str:
    return f"var(--{name},{COLOURS[name]})"


def element(tag: str, *children: str, **attributes: object) -> str:
    """`<tag ...>children</tag>`; attribute values are quoted, children are markup already.

    Underscores in attribute names stand for dashes; a trailing one is dropped (`class_`).
    """
    quoted = "".join(
        f" {name.rstrip('_').replace('_', '-')}={quoteattr(_number(value))}"
        for name, value in attributes.items()
        if value is not None
    )
    return f"<{tag}{quoted}>{''.join(children)}</{tag}>"


def text(x: float, y: float, content: str, *, size: int = 12, fill: str = "muted", **more) -> str:
    """Plain text at a point; `content` may come from anywhere."""
    more.setdefault("text_anchor", "start")
    style = f"fill:{colour(fill)};font-size:{size}px"
    return element("text", escape(one_line(content)), x=x, y=y, style=style, **more)


def standalone(svg: str) -> str:
    """A chart as a file of its own: plain colours on white, for viewers that know no CSS."""
    svg = _VARIABLE.sub(r"\1", svg)
    svg = _MIX.sub(lambda found: mix(found[1], found[3], float(found[2]) / 100), svg)
    width, height = map(int, re.search(r'viewBox="0 0 (\d+) (\d+)"', svg).groups())  # type: ignore
    width, height = width + 2 * MARGIN, height + 2 * MARGIN
    box = f'viewBox="{-MARGIN} {-MARGIN} {width} {height}" width="{width}" height="{height}"'
    head, _, marks = svg.partition(">")
    head = re.sub(r'viewBox="[^"]*"', box, head)
    ground = element("rect", x=-MARGIN, y=-MARGIN, width=width, height=height, fill="#ffffff")
    return f"{head}>{ground}{marks}\n"


def mix(one: str, other: str, share: float) -> str:
    """The colour `share` of the way from `other` to `one`, both as #rrggbb."""
    pairs = zip(bytes.fromhex(one[1:]), bytes.fromhex(other[1:]), strict=True)
    return "#" + "".join(f"{round(share * a + (1 - share) * b):02x}" for a, b in pairs)


def _number(value: object) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten) covering `low` to `high`."""
    span = max(high - low, 1e-12)
    power = 10.0 ** math.floor(math.log10(span / count))
    step = next(m * power for m in (1, 2, 5, 10) if span / (m * power) <= count)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times the powers of ten between `low` and `high`."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [m * 10.0**p for p in powers for m in (1, 2, 5) if low <= m * 10.0**p <= high]


def short(value: float) -> str:
    """`1.2M`, `34k`, `0.5`: a number for an axis."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


@dataclass
class Chart:
    """Axes over a rectangle, and the marks drawn into it so far."""

    x: tuple[float, float]
    y: tuple[float, float]
    title: str
    """What a screen reader says."""
    width: int = 640
    height: int = 320
    log_x: bool = False
    left: int = 44
    right: int = 16
    top: int = 16
    bottom: int = 40
    marks: list[str] = field(default_factory=list)

    def px(self, value: float) -> float:
        low, high = self.x
        if self.log_x:
            low, high, value = math.log(low), math.log(high), math.log(value)
        share = (value - low) / ((high - low) or 1.0)
        return self.left + share * (self.width - self.left - self.right)

    def py(self, value: float) -> float:
        low, high = self.y
        share = (value - low) / ((high - low) or 1.0)
        return self.height - self.bottom - share * (self.height - self.top - self.bottom)

    def y_axis(self, values: Sequence[float], labels: Sequence[str], name: str = "") -> None:
        for value, label in zip(values, labels, strict=True):
            y = self.py(value)
            self.line(self.left, y, self.width - self.right, y, "line")
            self.marks.append(text(self.left - 8, y + 4, label, text_anchor="end"))
        if name:
            self.marks.append(text(0, self.top - 14, name))

    def x_axis(self, values: Sequence[float], labels: Sequence[str], name: str = "") -> None:
        y = self.height - self.bottom + 16
        for value, label in zip(values, labels, strict=True):
            self.marks.append(text(self.px(value), y, label, text_anchor="middle"))
        if name:
            middle = (self.left + self.width - self.right) / 2
            self.marks.append(text(middle, y + 18, name, text_anchor="middle"))

    def line(self, x1, y1, x2, y2, stroke: str, width: float = 1, **more: object) -> None:
        """A line between two points in pixels."""
        style = f"stroke:{colour(stroke)};stroke-width:{width}"
        self.marks.append(element("line", x1=x1, y1=y1, x2=x2, y2=y2, style=style, **more))

    def path(
        self,
        points: Sequence[tuple[float, float]],
        stroke: str,
        width: float = 1.75,
        **more: object,
    ) -> None:
        """A polyline through points of the data."""
        drawn = " ".join(f"{self.px(x):.1f},{self.py(y):.1f}" for x, y in points)
        style = f"fill:none;stroke:{colour(stroke)};stroke-width:{width};stroke-linejoin:round"
        self.marks.append(element("polyline", points=drawn, style=style, **more))

    def area(self, points: Sequence[tuple[float, float]], fill: str, opacity: float = 0.14) -> None:
        drawn = " ".join(f"{self.px(x):.1f},{self.py(y):.1f}" for x, y in points)
        style = f"fill:{colour(fill)};opacity:{opacity}"
        self.marks.append(element("polygon", points=drawn, style=style))

    def dot(self, x: float, y: float, fill: str, told: str, radius: float = 4) -> None:
        """A point of the data that says what it is when pointed at."""
        style = f"fill:{colour(fill)}"
        title = element("title", escape(one_line(told)))
        self.marks.append(
            element("circle", title, cx=self.px(x), cy=self.py(y), r=radius, style=style)
        )

    def bar(self, x: float, width: float, height: float, fill: str, told: str) -> None:
        """A bar as high as `height` in data, over pixels `x` to `x + width`; `fill` is any CSS."""
        top, base = self.py(height), self.py(self.y[0])
        title = element("title", escape(one_line(told)))
        self.marks.append(
            element(
                "rect", title, x=x, y=top, width=width, height=max(base - top, 0.0),
                rx=1.5, style=f"fill:{fill}",
            )
        )  # fmt: skip

    def label(self, x: float, y: float, content: str, fill: str = "muted", **more) -> None:
        """Text at pixels."""
        self.marks.append(text(x, y, content, fill=fill, **more))

    def svg(self) -> str:
        return element(
            "svg",
            *self.marks,
            xmlns="http://www.w3.org/2000/svg",
            viewBox=f"0 0 {self.width} {self.height}",
            role="img",
            aria_label=one_line(self.title),
            class_="plot",
            style=f"max-width:{self.width}px;font-family:system-ui,sans-serif",
        )
