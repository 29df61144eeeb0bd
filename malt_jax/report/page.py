"""The page itself: its figures, and the template that sets them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from malt_jax.escape import visible
from malt_jax.evaluation import plots, tables
from malt_jax.report import trees
from malt_jax.storage.jsonl import read_lines

HERE = Path(__file__).parent
CURVES = ("loss", "accuracy", "margin")
"""Logged numbers worth a curve, where a training has them."""


def render(*, results: Mapping[str, Any] | None, **parts: Any) -> str:
    """`report.html` from the template; all text in it is escaped, the figures are our own."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: visible(value) if type(value) is str else value,
    )
    environment.filters |= {
        "percent": tables.percent,
        "points": tables.points,
        "interval": tables.interval,
        "p": tables.probability,
        "bytes": _bytes,
    }
    scripts = ("page.js", "tree.js", "explorer.js")
    return environment.get_template("page.html.j2").render(
        **parts,
        results=results,
        evaluation=_evaluation(results) if results else None,
        style=(HERE / "style.css").read_text(encoding="utf-8"),
        scripts=[(HERE / name).read_text(encoding="utf-8") for name in scripts],
    )


def tree_figures(found: Mapping[str, Any], threshold: float) -> dict[str, Any]:
    """What all trees of a round show together: kinds of questions, values by role and by depth."""
    totals, entries = found["totals"], found["questions"]
    return {
        "name": found["name"],
        "questions": len(entries),
        "kinds": Counter(_kind(entry["leaves"]) for entry in entries),
        "saved": sum(entry["saved"] > 0 for entry in entries),
        "broke": sum(entry["broke"] > 0 for entry in entries),
        "histograms": [
            plots.value_histogram(role, totals.values[role], threshold) for role in totals.roles
        ],
        "depth": plots.reward_by_depth(trees.depth_levels(totals)),
    }


def _kind(leaves: str) -> str:
    if "0" in leaves and "1" in leaves:
        return "mixed"
    return "right" if "1" in leaves else "wrong"


def learning_curves(path: Path) -> list[dict[str, Any]]:
    """Learning curves by round, role and phase, from the training lines of `metrics.jsonl`."""
    if not path.exists():
        return []
    series: dict[tuple, dict[str, list[tuple[int, float]]]] = defaultdict(lambda: defaultdict(list))
    for line in read_lines(path):
        if line.get("stage") == "train":
            key = (line.get("round") or 0, line.get("role") or "all roles", line.get("phase") or "")
            for name in CURVES:
                if isinstance(line.get(name), int | float):
                    series[key][name].append((line["step"], line[name]))
    rounds: dict[int, list[str]] = defaultdict(list)
    for (round, role, phase), numbers in series.items():
        title = f"{role}, {phase.upper()}" if phase else role
        for name, points in numbers.items():
            if figure := plots.learning_curve(title, name, points):
                rounds[round].append(figure)
    return [{"round": round, "figures": figures} for round, figures in sorted(rounds.items())]


def _evaluation(results: Mapping[str, Any]) -> dict[str, Any]:
    bounds = [bound for row in results["systems"] for bound in row["interval"]]
    return {
        "headline": _headline(results),
        "caption": tables.caption(results),
        # The common scale of the intervals drawn in the table.
        "low": min(bounds),
        "span": (max(bounds) - min(bounds)) or 1.0,
        "scatter": plots.accuracy_against_tokens(results),
        "cost": plots.cost_by_stage(results["cost"]),
        "reliability": [
            plots.reliability(role, found) for role, found in results["calibration"].items()
        ],
    }


def _headline(results: Mapping[str, Any]) -> dict[str, Any] | None:
    """The trained pipeline's largest vote beside the single agent at as many calls."""
    rows = {row["name"]: row for row in results["systems"]}
    own = [row for row in rows.values() if row["system"] == "malt"]
    for row in sorted(own or rows.values(), key=lambda row: -row["votes"]):
        if test := row["tests"].get(row["equal_calls_baseline"]):
            return {"row": row, "test": test, "other": rows[row["equal_calls_baseline"]]}
    return None


def _bytes(count: float) -> str:
    for size, unit in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} B"
