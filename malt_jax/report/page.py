"""The page: what its template shows of results, trees, training and cost."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from malt_jax.config.pipeline import PHASES
from malt_jax.credit.contrast import advice
from malt_jax.escape import visible
from malt_jax.evaluation import cells, sections, tables
from malt_jax.evaluation.credit_table import NOTE, contrast_table
from malt_jax.evaluation.schema import Results
from malt_jax.evaluation.systems import at_temperature, system_without_temperature
from malt_jax.report import figures
from malt_jax.report.drawing import Gallery
from malt_jax.report.trees import Group
from malt_jax.storage.jsonl import read_lines

HERE = Path(__file__).parent
CURVES = ("loss", "accuracy", "margin")
"""Logged numbers that get a curve, where a training has them."""


def render(template: str = "page.html.j2", live: bool = False, **parts: Any) -> str:
    """A page from its template; all text in it is escaped except the figures, our own."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        # A misspelt name in the template is an error and not an empty text.
        undefined=jinja2.StrictUndefined,
        # All text of models and files passes here. Markup, which the template marks as safe, is
        # another type and stays as it is.
        finalize=lambda value: visible(value) if type(value) is str else value,
    )
    environment.filters |= {
        "percent": cells.percent,
        "points": cells.points,
        "interval": cells.interval,
        "points_interval": cells.points_interval,
        "p": cells.probability,
        "seconds": cells.seconds,
    }
    scripts = ("page.js", "tree.js", "explorer.js")
    return environment.get_template(template).render(
        **parts,
        style=_without_comments((HERE / "style.css").read_text(encoding="utf-8")),
        scripts=[_without_comments((HERE / name).read_text("utf-8")) for name in scripts],
        live_script=_without_comments((HERE / "live.js").read_text("utf-8")) if live else "",
    )


def _without_comments(source: str) -> str:
    """A script or style without indentation and lines that only comment, a tenth of its size."""
    return re.sub(r"(?m)^ *(?:(?://.*|/\*.*\*/)\n)?", "", source)


def trees(group: Group, threshold: float, gallery: Gallery) -> dict[str, Any]:
    """What all trees of a group show together: outcomes, and values by role and by depth."""
    totals, entries = group.totals, group.questions
    contrast = totals.contrast.roles()
    return {
        "credit": contrast_table(contrast, group.pairs),
        "advice": advice(contrast) if group.pairs is not None else [],
        "credit_note": NOTE,
        "name": group.name,
        "questions": len(entries),
        "kinds": Counter(_kind(entry["leaves"]) for entry in entries),
        "saved": sum(entry["saved"] > 0 for entry in entries),
        "broke": sum(entry["broke"] > 0 for entry in entries),
        "histograms": [
            gallery.add(
                f"values {group.name} {role}",
                figures.value_histogram(role, totals.values[role], threshold),
            )
            for role in totals.roles
        ],
        "depth": gallery.add(
            f"reward by depth {group.name}", figures.reward_by_depth(totals.by_depth())
        ),
    }


def _kind(leaves: str) -> str:
    if "0" in leaves and "1" in leaves:
        return "mixed"
    return "right" if "1" in leaves else "wrong"


def training_series(path: Path) -> dict[tuple, list[tuple[int, float]]]:
    """(round, role, phase, number) -> (step, value), from the training lines of `metrics.jsonl`."""
    series: dict[tuple, list[tuple[int, float]]] = defaultdict(list)
    for line in read_lines(path) if path.exists() else ():
        if line.get("stage") == "train" and isinstance(line.get("step"), int):
            key = (line.get("round") or 0, line.get("role") or "all roles", line.get("phase") or "")
            for name in CURVES:
                if isinstance(line.get(name), int | float):
                    series[*key, name].append((line["step"], line[name]))
    return series


def curve_title(role: str, phase: str, name: str) -> str:
    """What is written over a learning curve."""
    return ", ".join(part for part in (role, phase.upper(), name) if part)


def learning_curves(path: Path, gallery: Gallery) -> list[dict[str, Any]]:
    """Learning curves by round, role and phase, from the training lines of `metrics.jsonl`."""
    rounds: dict[int, list[str]] = defaultdict(list)
    for (round, *names), points in training_series(path).items():
        title = curve_title(*names)
        figure = figures.learning_curve(title, points)
        if svg := gallery.add(f"training {round} {title}", figure):
            rounds[round].append(svg)
    return [{"round": round, "figures": svgs} for round, svgs in sorted(rounds.items())]


def evaluation(results: Results, roles: Sequence[str], gallery: Gallery) -> dict[str, Any]:
    """The figures and facts of the results; stages are in the order of `roles`."""
    cost = stages(results["cost"], roles)
    bounds = [bound for row in results["systems"] for bound in row["interval"]]
    breakdowns = [sections.by_turn(results), sections.by_level(results)]
    return {
        "headline": _headline(results),
        "caption": tables.caption(results),
        "rows": {row["name"]: row["label"] for row in results["systems"]},
        "ours": [
            row["label"] for row in results["systems"] if system_without_temperature(row) == "malt"
        ],
        # In a sweep every row has the baseline of its own temperature.
        "baselines": {
            row["name"]: at_temperature(results["baseline"], row.get("temperature"))
            for row in results["systems"]
        },
        "sections": [section for section in breakdowns if section.table.rows],
        # The common scale of the intervals that are drawn in the table.
        "low": min(bounds),
        "span": (max(bounds) - min(bounds)) or 1.0,
        "scatter": gallery.add("accuracy against tokens", figures.accuracy_against_tokens(results)),
        "cost": gallery.add("cost by stage", figures.cost_by_stage(cost)),
        "stages": cost,
        "labels": list(_counts(results["labels"])),
        "facts": tables.facts(results["run"]),
        "reliability": [
            gallery.add(f"reliability {role}", figures.reliability(role, found))
            for role, found in results["calibration"].items()
        ],
    }


def stages(
    cost: Mapping[str, Mapping[str, Any]], roles: Sequence[str]
) -> dict[str, Mapping[str, Any]]:
    """The stages in the order they ran: search and training round by round, then the others."""

    def order(name: str) -> tuple:
        kind, *rest = re.split("[-/]", name)
        rank = {"search": 0, "train": 1}.get(kind, 2)
        # Numbers of rounds sort before `~`, so search and training come before all other stages.
        round = next((part for part in rest if part.isdigit()), "") if rank < 2 else "~"
        role = next((i for i, role in enumerate(roles) if role in rest), len(roles))
        phase = next((i for i, phase in enumerate(PHASES) if phase in rest), 0)
        return round, rank, role, phase

    return {name: cost[name] for name in sorted(cost, key=order)}


def _counts(labels: Mapping[str, Any], group: str = "all") -> Iterator[tuple[str, dict[str, Any]]]:
    """The counts of nested groups as (name of the group, its own counts)."""
    if own := {name: count for name, count in labels.items() if not isinstance(count, Mapping)}:
        yield group, own
    for name, inner in labels.items():
        if isinstance(inner, Mapping):
            yield from _counts(inner, name)


def _headline(results: Results) -> dict[str, Any] | None:
    """The trained pipeline's largest vote beside the single agent with as many calls."""
    rows = {row["name"]: row for row in results["systems"]}
    own = [row for row in rows.values() if system_without_temperature(row) == "malt"]
    for row in sorted(own or rows.values(), key=lambda row: -row["votes"]):
        if test := row["tests"].get(row["equal_calls_baseline"]):
            return {"row": row, "test": test, "other": rows[row["equal_calls_baseline"]]}
    return None
