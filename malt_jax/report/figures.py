"""The figures of a run: results, trees, training and cost.

Each function takes plain data and returns a matplotlib figure, or None if there is nothing to draw.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from textwrap import shorten
from typing import TYPE_CHECKING, Any, NamedTuple

from malt_jax.evaluation.schema import Reliability, Results, Row
from malt_jax.evaluation.systems import system_without_temperature
from malt_jax.report.drawing import COLOURS, axes, plain, styled, tooltip

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, GREY = (COLOURS[name] for name in ("blue", "orange", "green", "grey"))
LOOKS: dict[str, dict[str, Any]] = {
    "sa": {"color": GREY, "ls": "-", "lw": 1.25},
    "malt": {"color": BLUE, "ls": "-", "lw": 2.25, "zorder": 3},
}
"""Lines of the systems that look the same in every report; the others use the style's cycle."""
LINES = (BLUE, ORANGE, GREEN, COLOURS["purple"], COLOURS["gold"])
"""Colours of lines whose order alone tells them apart."""
STEPS = (1, 2, 5, 10)
"""Leading digits of the distance between two ticks."""


@styled()
def accuracy_against_tokens(results: Results) -> Figure:
    """Accuracy over generated tokens per question; a line joins the votes of one system.

    The single agent is grey and the trained pipeline blue; whiskers are the intervals of the table.
    """
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter, PercentFormatter

    systems: dict[str, list[Row]] = defaultdict(list)
    for row in results["systems"]:
        systems[row["system"]].append(row)
    # The legend lists the systems in the order of the ends of their lines, the best first.
    ordered = sorted(systems.items(), key=lambda item: -item[1][-1]["accuracy"])
    labels = {name: _system_label(rows[0]["label"]) for name, rows in ordered}
    # The axes keep their size; the legend beside them takes what the longest name and all need.
    right, height = 60 + 7 * max(map(len, labels.values())), max(400, 90 + 20 * len(systems))
    title = "accuracy against generated tokens per question"
    figure, plot = axes(title, 690 + right, height, right=right)
    # Beside each other, one system's temperatures need colours of their own.
    swept = len({row.get("temperature") for row in results["systems"]}) > 1
    for name, rows in ordered:
        known = name if swept else system_without_temperature(rows[0])
        # A logarithmic scale has no place for 0.
        tokens = [max(row["tokens"], 1.0) for row in rows]
        accuracies = [row["accuracy"] for row in rows]
        [line] = plot.plot(tokens, accuracies, label=labels[name], **LOOKS.get(known, {"lw": 1.25}))
        colour = str(line.get_color())
        for x, y, row in zip(tokens, accuracies, rows, strict=True):
            low, high = row["interval"]
            plot.vlines(x, low, high, color=colour, lw=1, alpha=0.45)
            text = f"{row['label']}: {100 * y:.1f}%, {row['calls']} calls, {x:.0f} tokens"
            _dot(plot, x, y, colour, text, radius=5 if known == "malt" else 3.5)
    plot.set_xscale("log")
    plot.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    plot.xaxis.set_major_formatter(EngFormatter(sep=""))
    plot.xaxis.set_minor_formatter(NullFormatter())
    plot.yaxis.set_major_formatter(PercentFormatter(1, symbol=""))
    plot.set_xlabel("generated tokens per question (log scale)")
    _title(plot, "accuracy %", colour="muted")
    _legend(plot)
    return figure


def _system_label(label: str) -> str:
    """The label of a row without its votes, short enough to fit beside the axes."""
    return shorten(re.sub(r", vote of \d+$", "", plain(label)), 60, placeholder=" …")


def _legend(plot: Axes) -> None:
    plot.legend(loc="upper left", bbox_to_anchor=(1.02, 1.02), borderaxespad=0)


def _dot(plot: Axes, x: float, y: float, colour: str, text: str, radius: float) -> None:
    """A point with a tooltip."""
    [point] = plot.plot(x, y, "o", color=colour, ms=2 * radius, mew=0, clip_on=False)
    tooltip(point, text)


@styled()
def value_histogram(role: str, values: Mapping[float, int], threshold: float) -> Figure:
    """How often each value occurs among a role's nodes, with the threshold of the labels."""
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    counts: Counter[float] = Counter()
    for value, count in values.items():
        # Rounded to twentieths, so that nearly equal values share a bar.
        counts[round(20 * value) / 20] += count
    total = counts.total()
    figure, plot = axes(f"values of the {role}'s nodes", 300, 190)
    for value, count in sorted(counts.items()):
        # Orange at 0 and blue at 1, paler towards one half.
        end, strength = ("low" if value < 0.5 else "high"), max(abs(2 * value - 1), 0.15)
        colour = COLOURS[f"value-{end}"]
        [bar] = plot.bar(value, count / max(total, 1), 0.045, color=colour, alpha=strength)
        tooltip(bar, f"value {value:.2f}: {count} of {total} nodes")
    plot.axvline(threshold, color=COLOURS["ink"], lw=1, ls=":")
    plot.set(xlim=(-0.06, 1.06), xlabel="value")
    plot.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    plot.yaxis.set_major_locator(MaxNLocator(4, steps=STEPS))
    plot.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    _title(plot, f"{role}, {total} nodes")
    return figure


class DepthValues(NamedTuple):
    """Averages over trees at one depth: the worst, mean and best value of a node."""

    role: str
    worst: float
    mean: float
    best: float
    accuracy: float | None
    """Accuracy of the answers that the turns of this depth state; None if they state none."""


@styled()
def reward_by_depth(depths: Sequence[DepthValues]) -> Figure | None:
    """The value of the best, the mean and the worst node at each depth, the root first.

    The band shows how much choosing well (or badly) at that depth would matter.
    """
    if len(depths) < 2:
        return None
    figure, plot = axes("reward by tree depth", 420, 240, right=120)
    along = range(len(depths))
    worst, best = [d.worst for d in depths], [d.best for d in depths]
    plot.fill_between(along, worst, best, color=BLUE, alpha=0.14, lw=0)
    for name, colour, values in (
        ("best", BLUE, best),
        ("own answer", GREEN, [d.accuracy for d in depths]),
        ("mean", GREY, [d.mean for d in depths]),
        ("worst", ORANGE, worst),
    ):
        # A depth whose turns state no answer has no point.
        points = [(x, y) for x, y in zip(along, values, strict=True) if y is not None]
        if len(points) > 1:
            plot.plot(*zip(*points, strict=True), color=colour, label=name, ls="-")
            for x, y in points:
                _dot(plot, x, y, colour, f"{depths[x].role}, {name}: {100 * y:.1f}%", radius=3)
    plot.set(xlim=(0, len(depths) - 1), ylim=(0, 1))
    plot.set_xticks(along, [plain(d.role) for d in depths])
    plot.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100"])
    _title(plot, "reward %", colour="muted")
    _legend(plot)
    return figure


@styled()
def learning_curve(title: str, points: Sequence[tuple[int, float]]) -> Figure | None:
    """One logged number over the steps of one training, smoothed if it is noisy."""
    from matplotlib.ticker import MaxNLocator

    if len(points) < 2:
        return None
    figure, plot = axes(title, 300, 170)
    steps, values = zip(*points, strict=True)
    noisy = len(points) > 20
    if noisy:
        plot.plot(steps, values, color=GREY, lw=1, alpha=0.4, ls="-")
    plot.plot(steps, smooth(values) if noisy else values, color=BLUE, ls="-")
    plot.set(xlim=(steps[0], steps[-1]), xlabel="step")
    plot.xaxis.set_major_locator(MaxNLocator(4, steps=STEPS, integer=True))
    plot.yaxis.set_major_locator(MaxNLocator(4, steps=STEPS))
    # Ticks show full values, not differences from an offset in the corner.
    plot.ticklabel_format(useOffset=False)
    _title(plot, title)
    return figure


@styled()
def signal_spread(name: str, by_role: Mapping[str, Sequence[float]]) -> Figure | None:
    """The share of each role's nodes by the size of a credit signal."""
    import numpy as np
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    everything = np.concatenate([np.asarray(values) for values in by_role.values()])
    low, high = everything.min(), everything.max()
    if low == high:
        return None
    figure, plot = axes(f"{name} of the nodes by role", 420, 190, right=120)
    edges = np.linspace(low, high, 22)
    for (role, values), colour in zip(by_role.items(), itertools.cycle(LINES), strict=False):
        shares = np.histogram(values, edges)[0] / max(len(values), 1)
        plot.stairs(shares, edges, color=colour, label=plain(role), lw=1.6)
    plot.set(xlim=(low, high), xlabel=name)
    plot.yaxis.set_major_locator(MaxNLocator(4, steps=STEPS))
    plot.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    _title(plot, f"{name}, share of nodes")
    _legend(plot)
    return figure


@styled()
def accuracy_by_temperature(name: str, results: Results) -> Figure | None:
    """Accuracy of each row of a sweep over its temperatures, with intervals."""
    from matplotlib.ticker import PercentFormatter

    swept: dict[str, list[Row]] = defaultdict(list)
    for row in results["systems"]:
        if (t := row.get("temperature")) is not None:
            swept[row["label"].replace(f", T={t:g}", "")].append(row)
    if not any(len(rows) > 1 for rows in swept.values()):
        return None
    right = 60 + 7 * max(map(len, swept))
    title = f"{name}: accuracy by temperature"
    figure, plot = axes(title, 420 + right, max(220, 70 + 20 * len(swept)), right=right)
    for label, rows in swept.items():
        look = LOOKS.get(system_without_temperature(rows[0]), {"lw": 1.25})
        points = sorted((row["temperature"], row["accuracy"], row["interval"]) for row in rows)
        at, accuracies, bounds = zip(*points, strict=True)
        [line] = plot.plot(at, accuracies, label=plain(label), marker="o", ms=4, **look)
        plot.vlines(at, *zip(*bounds, strict=True), color=str(line.get_color()), lw=1, alpha=0.45)
    plot.yaxis.set_major_formatter(PercentFormatter(1, symbol=""))
    plot.set(xlabel="temperature")
    plot.set_xticks(
        sorted({t for rows in swept.values() for t in (r["temperature"] for r in rows)})
    )
    _title(plot, "accuracy %", colour="muted")
    _legend(plot)
    return figure


@styled()
def two_curves(title: str, named: Mapping[str, Sequence[tuple[int, float]]]) -> Figure | None:
    """One logged number over the steps of the same training in two runs, smoothed if noisy."""
    from matplotlib.ticker import MaxNLocator

    if not any(len(points) > 1 for points in named.values()):
        return None
    figure, plot = axes(title, 300, 170)
    for (name, points), colour in zip(named.items(), LINES, strict=False):
        steps, values = zip(*points, strict=True)
        shown = smooth(values) if len(points) > 20 else values
        plot.plot(steps, shown, color=colour, ls="-", label=plain(name))
    plot.set(xlabel="step")
    plot.xaxis.set_major_locator(MaxNLocator(4, steps=STEPS, integer=True))
    plot.yaxis.set_major_locator(MaxNLocator(4, steps=STEPS))
    plot.ticklabel_format(useOffset=False)
    plot.legend(loc="best")
    _title(plot, title)
    return figure


def smooth(values: Sequence[float], reach: int = 5) -> list[float]:
    """Each value averaged with its neighbours, `reach` to either side: smooth without a delay."""
    windows = (values[max(i - reach, 0) : i + reach + 1] for i in range(len(values)))
    return [sum(window) / len(window) for window in windows]


@styled()
def cost_by_stage(cost: Mapping[str, Mapping[str, Any]]) -> Figure | None:
    """Seconds of each stage as bars."""
    seconds = {plain(name): used["seconds"] for name, used in cost.items() if "seconds" in used}
    if not seconds:
        return None
    kinds = [re.split("[-/]", name)[0] for name in seconds]
    colours = [{"search": BLUE, "train": ORANGE}.get(kind, GREEN) for kind in kinds]
    height = 22 * len(seconds) + 8
    figure, plot = axes("seconds by stage", 560, height, left=170, right=70, top=0, bottom=0)
    bars = plot.barh(list(seconds), list(seconds.values()), 0.6, color=colours, alpha=0.8)
    plot.bar_label(bars, fmt="%.1f s", padding=6)
    # The vertical axis runs downwards, so that the first stage is on top.
    plot.set(xlim=(0, max(seconds.values()) or 1.0), ylim=(len(seconds) - 0.5, -0.5), xticks=[])
    plot.grid(False)
    return figure


@styled()
def reliability(role: str, found: Reliability) -> Figure:
    """Success observed in held-out branches over the value that predicted it."""
    figure, plot = axes(f"reliability of the {role}'s values", 300, 250, top=50)
    plot.plot([0, 1], [0, 1], color=GREY, lw=1, ls="--")
    points = [(b["predicted"], b["observed"]) for b in found["bins"]]
    plot.plot(*zip(*points, strict=True), color=BLUE, ls="-")
    for b in found["bins"]:
        text = f"value {b['predicted']:.2f}: {100 * b['observed']:.0f}% of {b['count']} right"
        # A square root, because the eye compares the areas of the dots; 3 keeps small ones visible.
        radius = 3 + 4 * (b["count"] / found["outcomes"]) ** 0.5
        _dot(plot, b["predicted"], b["observed"], BLUE, text, radius)
    plot.set(xlim=(0, 1), ylim=(0, 1), xlabel="value of the other branches → success %")
    plot.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    plot.set_yticks([0, 0.5, 1], ["0", "50", "100"])
    auc = "not defined" if found["auc"] is None else f"{found['auc']:.2f}"
    base = f"(always the mean: {found['brier_base']:.3f})"
    _title(plot, f"{role}: AUC {auc}, Brier {found['brier']:.3f}", base)
    return figure


def _title(plot: Axes, *lines: str, colour: str = "ink") -> None:
    """A title that begins at the left edge of the figure."""
    # Positions are relative to the axes, so a negative one reaches the figure's edge.
    left = -plot.bbox.x0 / plot.bbox.width
    plot.set_title("\n".join(map(plain, lines)), x=left, color=COLOURS[colour])
