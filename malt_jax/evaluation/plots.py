"""The figures of a run as SVG text: results, trees, training and cost.

Each function takes plain data and returns one `<svg>`, or "" where there is nothing to draw.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from textwrap import shorten
from typing import Any

from malt_jax.evaluation.svg import Chart, colour, log_ticks, short, ticks

Results = Mapping[str, Any]
_HUES = ("green", "purple", "gold", "orange")
_DASHES = (None, "7 3", "2 3", "7 3 2 3", "1 5", "12 4")
"""Of the lines of systems beyond the number of hues."""


def value_colour(value: float) -> str:
    """The CSS colour of a node value: orange at 0, neutral at one half, blue at 1."""
    near, share = ("low", 1 - 2 * value) if value < 0.5 else ("high", 2 * value - 1)
    end, middle = colour(f"value-{near}"), colour("value-mid")
    return f"color-mix(in oklab, {end} {100 * share:.0f}%, {middle})"


def accuracy_against_tokens(results: Results) -> str:
    """Accuracy over generated tokens a question; a line joins one system's votes.

    The single agent is grey, the trained pipeline blue; whiskers are the intervals of the table.
    """
    systems: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in results["systems"]:
        systems[row["system"]].append(row)
    rows = results["systems"]
    low = min(row["interval"][0] for row in rows)
    high = max(row["interval"][1] for row in rows)
    tokens = [max(row["tokens"], 1.0) for row in rows]
    labels = {name: _system_label(votes[0]["label"]) for name, votes in systems.items()}
    # The axes keep their width, the labels beside them take what the longest needs.
    right = 24 + 7 * max(map(len, labels.values()))
    chart = Chart(
        (min(tokens) * 0.8, max(tokens) * 1.25), (max(low - 0.03, 0), min(high + 0.03, 1)),
        "accuracy against generated tokens a question", width=690 + right, height=400, log_x=True,
        right=right, top=34, bottom=44,
    )  # fmt: skip
    across = ticks(*chart.y)
    chart.y_axis(across, [f"{100 * v:.0f}" for v in across], "accuracy %")
    along = log_ticks(*chart.x)
    chart.x_axis(along, [short(v) for v in along], "generated tokens a question (log scale)")
    looks = _looks(systems)
    ends = []
    for name, votes in systems.items():
        hue, dash = looks[name]
        points = [(max(row["tokens"], 1.0), row["accuracy"]) for row in votes]
        chart.path(points, hue, 2.25 if name == "malt" else 1.25, stroke_dasharray=dash)
        for (x, y), row in zip(points, votes, strict=True):
            at = chart.px(x)
            bottom, top = (chart.py(bound) for bound in row["interval"])
            chart.line(at, bottom, at, top, hue, 1, opacity=0.45)
            told = f"{row['label']}: {100 * y:.1f}%, {row['calls']} calls, {x:.0f} tokens"
            chart.dot(x, y, hue, told, 5 if name == "malt" else 3.5)
        ends.append((chart.py(points[-1][1]), chart.px(points[-1][0]), labels[name], hue))
    ends.sort()
    for (at, x, label, hue), y in zip(ends, _apart([end[0] for end in ends]), strict=True):
        chart.line(x + 6, at, chart.width - chart.right + 6, y, hue, 0.5, opacity=0.5)
        chart.label(chart.width - chart.right + 10, y + 4, label, hue)
    return chart.svg()


def _system_label(label: str) -> str:
    """A row's label without its votes, short enough to stand beside the axes."""
    return shorten(re.sub(r", vote of \d+$", "", label), 60, placeholder=" …")


def _looks(systems: Iterable[str]) -> dict[str, tuple[str, str | None]]:
    """Each system's colour and dashes; no two are alike until both have run out."""
    others = [name for name in systems if name not in ("sa", "malt")]
    count = len(_HUES)
    looks = {
        name: (_HUES[i % count], _DASHES[i // count % len(_DASHES)])
        for i, name in enumerate(others)
    }
    return {**looks, "sa": ("grey", None), "malt": ("blue", None)}


def _apart(heights: Sequence[float], gap: float = 15) -> list[float]:
    """Sorted label heights pushed apart, so that none covers another."""
    placed: list[float] = []
    for height in heights:
        placed.append(max(height, placed[-1] + gap) if placed else height)
    return placed


def value_histogram(role: str, values: Mapping[float, int], threshold: float) -> str:
    """How often each value occurs among a role's nodes, with the threshold of the labels."""
    counts = dict(sorted(values.items()))
    if len(counts) > 12:
        binned: dict[float, int] = defaultdict(int)
        for value, count in counts.items():
            binned[(min(int(value * 10), 9) + 0.5) / 10] += count
        counts = dict(binned)
    total, most = sum(counts.values()), max(counts.values(), default=1)
    chart = Chart(
        (-0.06, 1.06), (0, most / max(total, 1) * 1.08), f"values of the {role}'s nodes",
        width=300, height=190, left=40, right=8, top=30,
    )  # fmt: skip
    across = ticks(*chart.y, 4)
    chart.y_axis(across, [f"{100 * v:.0f}%" for v in across])
    chart.label(0, 12, f"{role}, {total} nodes", "ink")
    chart.x_axis([0, 0.5, 1], ["0", "0.5", "1"], "value")
    width = min(18.0, 200 / max(len(counts), 1))
    for value, count in counts.items():
        told = f"value {value:.2f}: {count} of {total} nodes"
        at = chart.px(value) - width / 2
        chart.bar(at, width, count / total, value_colour(value), told)
    at = chart.px(threshold)
    chart.line(at, chart.top, at, chart.py(0), "ink", 1, stroke_dasharray="2 3")
    return chart.svg()


def reward_by_depth(levels: Sequence[tuple[str, float, float, float, float | None]]) -> str:
    """The value of the best, the mean and the worst node at each depth, averaged over trees.

    `levels`: (role, worst, mean, best, accuracy of the turns or None), the root first. The band
    shows how much choosing well (or badly) at that depth would matter.
    """
    if len(levels) < 2:
        return ""
    chart = Chart((0, len(levels) - 1), (0, 1), "reward by tree depth", width=420, height=240,
                  right=92, top=34)  # fmt: skip
    chart.y_axis([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100"], "reward %")
    chart.x_axis(range(len(levels)), [level[0] for level in levels])
    upper = [(i, level[3]) for i, level in enumerate(levels)]
    lower = [(i, level[1]) for i, level in enumerate(levels)]
    chart.area([*upper, *reversed(lower)], "blue")
    curves = {"best": (upper, "blue"), "worst": (lower, "orange")}
    curves["mean"] = ([(i, level[2]) for i, level in enumerate(levels)], "grey")
    turns = [(i, level[4]) for i, level in enumerate(levels) if level[4] is not None]
    if len(turns) > 1:
        curves["own answer"] = (turns, "green")
    ends = sorted((chart.py(points[-1][1]), name) for name, (points, _) in curves.items())
    heights = _apart([height for height, _ in ends])
    for (_, name), y in zip(ends, heights, strict=True):
        points, hue = curves[name]
        chart.path(points, hue)
        for i, value in points:
            chart.dot(i, value, hue, f"{levels[i][0]}, {name}: {100 * value:.1f}%", 3)
        chart.label(chart.width - chart.right + 8, y + 4, name, hue)
    return chart.svg()


def learning_curve(title: str, name: str, points: Sequence[tuple[int, float]]) -> str:
    """One logged number over the steps of one training."""
    if len(points) < 2:
        return ""
    values = [value for _, value in points]
    low, high = min(values), max(values)
    pad = 0.06 * (high - low) or 0.05
    chart = Chart(
        (points[0][0], points[-1][0]), (low - pad, high + pad), f"{title}, {name}",
        width=300, height=170, left=44, right=10, top=30,
    )  # fmt: skip
    chart.label(0, 12, f"{title}, {name}", "ink")
    across = ticks(*chart.y, 4)
    chart.y_axis(across, [short(v) for v in across])
    along = [step for step in ticks(*chart.x, 4) if step == int(step)]
    chart.x_axis(along, [short(v) for v in along], "step")
    noisy = len(points) > 20
    if noisy:
        chart.path(points, "grey", 1, opacity=0.4)
    chart.path(smooth(points) if noisy else points, "blue")
    return chart.svg()


def smooth(points: Sequence[tuple[int, float]], reach: int = 5) -> list[tuple[int, float]]:
    """Each value averaged with its neighbours, `reach` to either side: smooth, and not late."""
    values = [value for _, value in points]
    windows = (values[max(i - reach, 0) : i + reach + 1] for i in range(len(values)))
    return [(step, sum(w) / len(w)) for (step, _), w in zip(points, windows, strict=True)]


def cost_by_stage(cost: Mapping[str, Mapping[str, Any]]) -> str:
    """Seconds of each stage as bars."""
    stages = [(name, numbers["seconds"]) for name, numbers in cost.items() if "seconds" in numbers]
    if not stages:
        return ""
    longest = max(seconds for _, seconds in stages) or 1.0
    row = 22
    chart = Chart((0, longest), (0, 1), "seconds by stage", width=560, height=row * len(stages) + 8,
                  left=170, right=70, top=0, bottom=0)  # fmt: skip
    for index, (name, seconds) in enumerate(stages):
        y = index * row + 16
        end = chart.px(seconds)
        kind = re.split("[-/]", name)[0]
        hue = {"search": "blue", "train": "orange"}.get(kind, "green")
        chart.label(chart.left - 10, y, name, "ink", text_anchor="end")
        chart.marks.append(
            f'<rect x="{chart.left}" y="{y - 11}" width="{max(end - chart.left, 1):.1f}" '
            f'height="13" rx="1.5" style="fill:{colour(hue)};opacity:.8"/>'
        )
        chart.label(end + 6, y, f"{seconds:.1f} s")
    return chart.svg()


def reliability(role: str, found: Mapping[str, Any]) -> str:
    """Success observed in held-out branches over the value that predicted it."""
    chart = Chart((0, 1), (0, 1), f"reliability of the {role}'s values", width=300, height=250,
                  left=40, right=12, top=46)  # fmt: skip
    auc = "not defined" if found["auc"] is None else f"{found['auc']:.2f}"
    chart.label(0, 12, f"{role}: AUC {auc}, Brier {found['brier']:.3f}", "ink")
    chart.label(0, 27, f"(always the mean: {found['brier_base']:.3f})")
    chart.y_axis([0, 0.5, 1], ["0", "50", "100"])
    chart.x_axis([0, 0.5, 1], ["0", "0.5", "1"], "value of the other branches → success %")
    chart.path([(0, 0), (1, 1)], "grey", 1, stroke_dasharray="3 3")
    points = [(b["predicted"], b["observed"]) for b in found["bins"]]
    chart.path(points, "blue")
    for b in found["bins"]:
        told = f"value {b['predicted']:.2f}: {100 * b['observed']:.0f}% of {b['count']} right"
        radius = 3 + 4 * (b["count"] / found["outcomes"]) ** 0.5
        chart.dot(b["predicted"], b["observed"], "blue", told, radius)
    return chart.svg()
