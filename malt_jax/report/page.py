"""The page itself: its figures, and the template that sets them."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from malt_jax.escape import visible
from malt_jax.evaluation import cells, plots, sections, tables
from malt_jax.report import trees
from malt_jax.storage.jsonl import read_lines

HERE = Path(__file__).parent
CURVES = ("loss", "accuracy", "margin")
"""Logged numbers worth a curve, where a training has them."""

GROUPS = {"trees": "search", "star": "STaR baseline"}
COUNTS = {
    "all_right": "trees all right",
    "all_wrong": "trees all wrong",
    "mixed": "trees with both",
    "unparsed": "final answers not parsed",
    "length": "turns cut at the token limit",
    "cut_prompts": "prompts shortened to fit",
    "sft": "SFT examples",
    "dpo": "DPO pairs",
    "positives": "positive nodes",
    "negatives": "negative nodes",
    "positives_behind_negative": "positive nodes behind a turn that was not",
    "positives_cut_at_limit": "positives left out, cut at the token limit",
    "pairs_of_equal_text": "pairs left out, both texts alike",
    "pairs_possible": "pairs to choose from",
    "repeats": "examples left out as repeats of another",
}
"""What the counts of the labels are called on the page."""


def render(**parts: Any) -> str:
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
        "percent": cells.percent,
        "points": cells.points,
        "interval": cells.interval,
        "p": cells.probability,
        "seconds": cells.seconds,
        "bytes": _bytes,
    }
    scripts = ("page.js", "tree.js", "explorer.js")
    return environment.get_template("page.html.j2").render(
        **parts,
        style=(HERE / "style.css").read_text(encoding="utf-8"),
        scripts=[(HERE / name).read_text(encoding="utf-8") for name in scripts],
    )


def tree_figures(group: trees.Group, threshold: float) -> dict[str, Any]:
    """What all trees of a group show together: kinds of questions, values by role and by depth."""
    totals, entries = group.totals, group.questions
    return {
        "name": group.name,
        "questions": len(entries),
        "kinds": Counter(_kind(entry["leaves"]) for entry in entries),
        "saved": sum(entry["saved"] > 0 for entry in entries),
        "broke": sum(entry["broke"] > 0 for entry in entries),
        "histograms": {
            role: plots.value_histogram(role, totals.values[role], threshold)
            for role in totals.roles
        },
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
        if line.get("stage") == "train" and isinstance(line.get("step"), int):
            key = (line.get("round") or 0, line.get("role") or "all roles", line.get("phase") or "")
            for name in CURVES:
                if isinstance(line.get(name), int | float):
                    series[key][name].append((line["step"], line[name]))
    rounds: dict[int, dict[str, str]] = defaultdict(dict)
    for (round, role, phase), numbers in series.items():
        title = f"{role}, {phase.upper()}" if phase else role
        for name, points in numbers.items():
            if figure := plots.learning_curve(title, name, points):
                rounds[round][f"{title}, {name}"] = figure
    return [{"round": round, "figures": figures} for round, figures in sorted(rounds.items())]


def evaluation(results: Mapping[str, Any], roles: Sequence[str]) -> dict[str, Any]:
    """The figures and facts of the results, the stages in the order of `roles`."""
    cost = stages(results["cost"], roles)
    bounds = [bound for row in results["systems"] for bound in row["interval"]]
    return {
        "headline": _headline(results),
        "caption": tables.caption(results),
        "titles": sections.titles(results),
        "rows": {row["name"]: row["label"] for row in results["systems"]},
        "turns_note": sections.TURNS_NOTE,
        # The common scale of the intervals drawn in the table.
        "low": min(bounds),
        "span": (max(bounds) - min(bounds)) or 1.0,
        "scatter": plots.accuracy_against_tokens(results),
        "cost": plots.cost_by_stage(cost),
        "stages": cost,
        "labels": list(_counts(results["labels"])),
        "facts": tables.facts(results["run"]),
        "reliability": {
            role: plots.reliability(role, found) for role, found in results["calibration"].items()
        },
    }


def stages(
    cost: Mapping[str, Mapping[str, Any]], roles: Sequence[str]
) -> dict[str, Mapping[str, Any]]:
    """The stages in the order they ran: round by round search and training, then the rest."""

    def order(name: str) -> tuple:
        kind, *rest = re.split("[-/]", name)
        rank = {"search": 0, "train": 1}.get(kind, 2)
        round = next((part for part in rest if part.isdigit()), "") if rank < 2 else "~"
        role = next((i for i, role in enumerate(roles) if role in rest), len(roles))
        return round, rank, role, "dpo" in rest

    return {name: cost[name] for name in sorted(cost, key=order)}


def _counts(labels: Mapping[str, Any], name: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Nested counts as rows of (name, counts), what is counted said in words."""
    own = {key: count for key, count in labels.items() if not isinstance(count, Mapping)}
    if own:
        told = {COUNTS.get(key, key.replace("_", " ")): count for key, count in own.items()}
        yield GROUPS.get(name, name or "all"), told
    for key, inner in labels.items():
        if isinstance(inner, Mapping):
            yield from _counts(inner, key)


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
