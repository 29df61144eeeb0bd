"""The figures of a run: results, trees, training and cost.

Each function takes plain data and returns a matplotlib figure, or None if there is nothing to draw.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from textwrap import shorten
from typing import TYPE_CHECKING, Any, NamedTuple

from malt_jax.escape import one_line
from malt_jax.evaluation.schema import Reliability, Results, Row
from malt_jax.report.drawing import COLOURS, axes, styled, tip, value_colour

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HUES = ("green", "purple", "gold", "orange")
DASHES = ("-", (0, (4, 2)), (0, (1, 2)), (0, (4, 2, 1, 2)), (0, (1, 4)), (0, (8, 3)))
"""Line styles of the systems beyond the number of hues."""
STEPS = (1, 2, 5, 10)
"""Leading digits of the distance between two ticks."""
LABEL_GAP = 15
"""Pixels between the labels beside the axes, from line to line."""


class End(NamedTuple):
    """The last point of a curve and the label that names the curve."""

    y: float
    x: float
    label: str
    colour: str


@styled()
def accuracy_against_tokens(results: Results) -> Figure:
    """Accuracy over generated tokens per question; a line joins the votes of one system.

    The single agent is grey and the trained pipeline blue; whiskers are the intervals of the table.
    """
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter, PercentFormatter

    systems: dict[str, list[Row]] = defaultdict(list)
    for row in results["systems"]:
        systems[row["system"]].append(row)
    labels = {name: _system_label(rows[0]["label"]) for name, rows in systems.items()}
    # The axes keep their size; the labels beside them take what the longest one and all need.
    right = 24 + 7 * max(map(len, labels.values()))
    height = max(400, 78 + LABEL_GAP * len(systems))
    plot = axes("accuracy against generated tokens per question",
                690 + right, height, left=44, right=right, top=34, bottom=44)  # fmt: skip
    looks = _looks(systems)
    ends = []
    for name, rows in systems.items():
        colour, dash = looks[name]
        points = [(max(row["tokens"], 1.0), row["accuracy"]) for row in rows]
        ours = name == "malt"
        plot.plot(*zip(*points, strict=True), color=colour, ls=dash, lw=2.25 if ours else 1.25)
        for (x, y), row in zip(points, rows, strict=True):
            plot.vlines(x, *row["interval"], color=colour, lw=1, alpha=0.45)
            text = f"{row['label']}: {100 * y:.1f}%, {row['calls']} calls, {x:.0f} tokens"
            _dot(plot, x, y, colour, text, 5 if ours else 3.5)
        ends.append(End(points[-1][1], points[-1][0], labels[name], colour))
    bounds = [bound for row in results["systems"] for bound in row["interval"]]
    plot.set_ylim(max(min(bounds) - 0.03, 0), min(max(bounds) + 0.03, 1))
    plot.set_xscale("log")
    plot.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    plot.xaxis.set_major_formatter(EngFormatter(sep=""))
    plot.xaxis.set_minor_formatter(NullFormatter())
    plot.yaxis.set_major_formatter(PercentFormatter(1, symbol=""))
    plot.grid(axis="y")
    _title(plot, "accuracy %", colour="muted")
    plot.set_xlabel("generated tokens per question (log scale)")
    tokens = [max(row["tokens"], 1.0) for row in results["systems"]]
    plot.set_xlim(min(tokens) * 0.8, max(tokens) * 1.25)
    _label_curves(plot, ends, height - 78)
    return plot.figure


def _system_label(label: str) -> str:
    """The label of a row without its votes, short enough to stand beside the axes."""
    return shorten(re.sub(r", vote of \d+$", "", one_line(label)), 60, placeholder=" …")


def _looks(systems: Iterable[str]) -> dict[str, tuple[str, Any]]:
    """The colour and line style of each system; no two are alike until both have run out."""
    others = [name for name in systems if name not in ("sa", "malt")]
    looks = {
        name: (COLOURS[HUES[i % len(HUES)]], DASHES[i // len(HUES) % len(DASHES)])
        for i, name in enumerate(others)
    }
    return {**looks, "sa": (COLOURS["grey"], "-"), "malt": (COLOURS["blue"], "-")}


def _label_curves(plot: Axes, ends: Sequence[End], height: int) -> None:
    """Names every curve beside the axes, which are `height` pixels high, without overlaps."""
    low, high = plot.get_ylim()
    ends = sorted(ends, reverse=True)
    gap = LABEL_GAP / height
    at = [(end.y - low) / (high - low) for end in ends]
    # From the top, each label is pushed below the one above it.
    for i in range(1, len(at)):
        at[i] = min(at[i], at[i - 1] - gap)
    # Labels that were pushed below the axes come up again, and push up those above them.
    for i in range(len(at)):
        at[i] = max(at[i], gap * (len(at) - 1 - i))
    for end, y in zip(ends, at, strict=True):
        line = {"arrowstyle": "-", "color": end.colour, "lw": 0.5, "alpha": 0.5}
        line |= {"relpos": (0, 0.5), "shrinkB": 5}
        plot.annotate(
            end.label, (end.x, end.y), (1 + 10 / plot.bbox.width, y), textcoords="axes fraction",
            color=end.colour, va="center", arrowprops=line, annotation_clip=False,
        )  # fmt: skip


def _dot(plot: Axes, x: float, y: float, colour: str, text: str, radius: float) -> None:
    """A point that says what it is when it is pointed at."""
    [point] = plot.plot(x, y, "o", color=colour, ms=2 * radius, mew=0, clip_on=False)
    tip(point, text)


@styled()
def value_histogram(role: str, values: Mapping[float, int], threshold: float) -> Figure:
    """How often each value occurs among a role's nodes, with the threshold of the labels."""
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    counts = dict(sorted(values.items()))
    if len(counts) > 12:
        binned: dict[float, int] = defaultdict(int)
        for value, count in counts.items():
            binned[(min(int(value * 10), 9) + 0.5) / 10] += count
        counts = dict(binned)
    total = max(sum(counts.values()), 1)
    plot = axes(f"values of the {role}'s nodes", 300, 190, left=40, right=8, top=30)
    width = min(0.08, 0.9 / max(len(counts), 1))
    for value, count in counts.items():
        [bar] = plot.bar(value, count / total, width, color=value_colour(value))
        tip(bar, f"value {value:.2f}: {count} of {total} nodes")
    plot.axvline(threshold, color=COLOURS["ink"], lw=1, ls=DASHES[2])
    plot.set_xlim(-0.06, 1.06)
    plot.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    plot.yaxis.set_major_locator(MaxNLocator(4, steps=STEPS))
    plot.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    plot.grid(axis="y")
    plot.set_xlabel("value")
    _title(plot, f"{role}, {sum(counts.values())} nodes")
    return plot.figure


class DepthValues(NamedTuple):
    """Averages over trees at one depth: the worst, mean and best value of a node."""

    role: str
    worst: float
    mean: float
    best: float
    accuracy: float | None
    """Of the answers that the turns of this depth state; None if they state none."""


@styled()
def reward_by_depth(depths: Sequence[DepthValues]) -> Figure | None:
    """The value of the best, the mean and the worst node at each depth, the root first.

    The band shows how much choosing well (or badly) at that depth would matter.
    """
    if len(depths) < 2:
        return None
    plot = axes("reward by tree depth", 420, 240, left=44, right=92, top=34)
    along = range(len(depths))
    worst, best = [d.worst for d in depths], [d.best for d in depths]
    plot.fill_between(along, worst, best, color=COLOURS["blue"], alpha=0.14, lw=0)
    curves = {"best": best, "worst": worst, "mean": [d.mean for d in depths]}
    curves["own answer"] = [d.accuracy for d in depths]
    colours = {"best": "blue", "worst": "orange", "mean": "grey", "own answer": "green"}
    ends = []
    for name, values in curves.items():
        colour = COLOURS[colours[name]]
        points = [(x, y) for x, y in zip(along, values, strict=True) if y is not None]
        if len(points) < 2:
            continue
        plot.plot(*zip(*points, strict=True), color=colour)
        for x, y in points:
            _dot(plot, x, y, colour, f"{depths[x].role}, {name}: {100 * y:.1f}%", 3)
        ends.append(End(points[-1][1], points[-1][0], name, colour))
    plot.set(xlim=(0, len(depths) - 1), ylim=(0, 1))
    plot.set_xticks(along, [one_line(d.role) for d in depths])
    plot.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100"])
    plot.grid(axis="y")
    _title(plot, "reward %", colour="muted")
    _label_curves(plot, ends, 240 - 34 - 40)
    return plot.figure


@styled()
def learning_curve(title: str, points: Sequence[tuple[int, float]]) -> Figure | None:
    """One logged number over the steps of one training, smoothed if it is noisy."""
    from matplotlib.ticker import MaxNLocator

    if len(points) < 2:
        return None
    plot = axes(title, 300, 170, left=44, right=10, top=30)
    steps, values = zip(*points, strict=True)
    if len(points) > 20:
        plot.plot(steps, values, color=COLOURS["grey"], lw=1, alpha=0.4)
        values = smooth(values)
    plot.plot(steps, values, color=COLOURS["blue"])
    plot.set_xlim(steps[0], steps[-1])
    plot.xaxis.set_major_locator(MaxNLocator(4, steps=STEPS, integer=True))
    plot.yaxis.set_major_locator(MaxNLocator(4, steps=STEPS))
    plot.ticklabel_format(useOffset=False)
    plot.grid(axis="y")
    plot.set_xlabel("step")
    _title(plot, title)
    return plot.figure


def smooth(values: Sequence[float], reach: int = 5) -> list[float]:
    """Each value averaged with its neighbours, `reach` to either side: smooth without a delay."""
    windows = (values[max(i - reach, 0) : i + reach + 1] for i in range(len(values)))
    return [sum(window) / len(window) for window in windows]


@styled()
def cost_by_stage(cost: Mapping[str, Mapping[str, Any]]) -> Figure | None:
    """Seconds of each stage as bars."""
    stages = [(name, numbers["seconds"]) for name, numbers in cost.items() if "seconds" in numbers]
    if not stages:
        return None
    height = 22 * len(stages) + 8
    plot = axes("seconds by stage", 560, height, left=170, right=70, top=0, bottom=0)
    colours = {"search": "blue", "train": "orange"}
    for index, (name, seconds) in enumerate(stages):
        colour = COLOURS[colours.get(re.split("[-/]", name)[0], "green")]
        plot.barh(index, seconds, 0.6, color=colour, alpha=0.8)
        plot.annotate(
            f"{seconds:.1f} s", (seconds, index), (6, 0), textcoords="offset points", va="center"
        )
    plot.set_xlim(0, max(seconds for _, seconds in stages) or 1.0)
    plot.set_ylim(len(stages) - 0.5, -0.5)
    plot.set_xticks([])
    names = [one_line(name) for name, _ in stages]
    plot.set_yticks(range(len(stages)), names, color=COLOURS["ink"])
    return plot.figure


@styled()
def reliability(role: str, found: Reliability) -> Figure:
    """Success observed in held-out branches over the value that predicted it."""
    plot = axes(f"reliability of the {role}'s values", 300, 250, left=40, right=12, top=50)
    auc = "not defined" if found["auc"] is None else f"{found['auc']:.2f}"
    base = f"(always the mean: {found['brier_base']:.3f})"
    _title(plot, f"{role}: AUC {auc}, Brier {found['brier']:.3f}", base)
    plot.plot([0, 1], [0, 1], color=COLOURS["grey"], lw=1, ls=DASHES[1])
    points = [(b["predicted"], b["observed"]) for b in found["bins"]]
    plot.plot(*zip(*points, strict=True), color=COLOURS["blue"])
    for b in found["bins"]:
        text = f"value {b['predicted']:.2f}: {100 * b['observed']:.0f}% of {b['count']} right"
        radius = 3 + 4 * (b["count"] / found["outcomes"]) ** 0.5
        _dot(plot, b["predicted"], b["observed"], COLOURS["blue"], text, radius)
    plot.set(xlim=(0, 1), ylim=(0, 1), xlabel="value of the other branches → success %")
    plot.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    plot.set_yticks([0, 0.5, 1], ["0", "50", "100"])
    plot.grid(axis="y")
    return plot.figure


def _title(plot: Axes, *lines: str, colour: str = "ink") -> None:
    """A title that begins at the left edge of the figure."""
    left = -plot.bbox.x0 / plot.bbox.width
    plot.set_title("\n".join(map(one_line, lines)), x=left, color=COLOURS[colour])
