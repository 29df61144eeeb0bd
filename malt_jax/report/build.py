"""From a run directory to `report.html` and `plots/`, with `report_data/` if there is much data."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from malt_jax.config import strict_yaml
from malt_jax.errors import UserError
from malt_jax.evaluation import sections
from malt_jax.evaluation.transfer import Column
from malt_jax.report import answers, elsewhere, embed, page, signals, trees
from malt_jax.report.drawing import Gallery
from malt_jax.report.prompts import Templates
from malt_jax.storage import atomic
from malt_jax.storage.jsonl import read_json

PLOTS = "plots"
"""The folder of the figures as files."""


def build_report(
    run: str | os.PathLike,
    questions: answers.Questions | None = None,
    evaluations: Sequence[Column] = (),
) -> Path:
    """Writes the report of a run, and its figures as files, and returns the report's path.

    `questions` gives the text and reference answer of evaluation questions by id; without it the
    page shows their first prompt. `evaluations` are those of `malt eval --run`. A sentence replaces
    whatever the run does not have yet. Raises `UserError` if the folder holds nothing to report.
    """
    path, gallery = Path(run) / "report.html", Gallery()
    with atomic.scratch(path) as folder:
        text, beside = compose(Path(run), folder, gallery, questions or {}, evaluations)
        embed.write_page(path, text, beside)
    gallery.write(path.with_name(PLOTS))
    return path


def compose(
    run: Path,
    folder: Path,
    gallery: Gallery,
    questions: answers.Questions,
    evaluations: Sequence[Column] = (),
    live: str = "",
) -> tuple[str, Path | None]:
    """The text of the page, and `folder` if its data is to be written beside it.

    `folder` is empty and gets the data, because only its whole size decides whether it becomes part
    of the page. A page with `live` asks the server that it came from for what is new, and loads its
    data from this address there.
    """
    results = read_json(run / "results.json", "remove it and run `malt eval`")
    config = read_yaml(run / "config.yaml")
    threshold = float((config.get("search") or {}).get("threshold", 0.5))
    curves = page.learning_curves(run / "metrics.jsonl", gallery)
    pages, templates = embed.Pages(folder), Templates()
    groups = add_groups(run, threshold, pages, templates)
    order = [row["system"] for row in results["systems"]] if results else []
    source = answers.Source(run / "eval", order, questions)
    systems, entries = answers.add_answers([source], pages)
    pages.close()
    if not (groups or results or entries or curves):
        raise UserError(
            f"{run}: nothing to report: no trees, metrics or results; run `malt search` first."
        )
    labels = sections.titles(results) if results else {}
    address = live or embed.REPORT_DATA
    pairing = {
        "name": "Before and after",
        "before": answers.names_in(results, "ma", "sa"),
        "after": answers.names_in(results, "malt"),
    }
    data, inline = embed.explorer_data(
        folder, pages, groups, templates, systems, labels, entries, address, pairing
    )
    roles = [role["name"] for role in (config.get("pipeline") or {}).get("roles", ())]
    text = page.render(
        name=run.resolve().name,
        results=results,
        evaluation=page.evaluation(results, roles, gallery) if results else None,
        elsewhere=elsewhere.evaluations(evaluations, results, gallery),
        curves=curves,
        trees=[page.trees(group, threshold, gallery) for group in groups],
        signals=signals.summaries(run, gallery),
        explorer=bool(groups or entries),
        data=data,
        pages=inline,
        live=bool(live),
    )
    return text, None if inline or not pages.bytes else folder


def add_groups(
    run: Path, threshold: float, pages: embed.Pages, templates: Templates, prefix: str = ""
) -> list[trees.Group]:
    """Adds all trees of a run to the page's data; groups without a tree are left out.

    `prefix` tells the groups of this run from those of another one on the same page.
    """
    groups = []
    for key, name, files, data, credit in _tree_files(run):
        names = (prefix.lower() + key, f"{prefix}: {name}" if prefix else name)
        group = trees.add_trees(*names, files, data, credit, pages, templates, threshold)
        groups += [group] if group.questions else []
    return groups


def _tree_files(run: Path) -> Iterator[tuple[str, str, list[Path], Path | None, Path]]:
    """Key, name, files, role data and signals of every group of trees: rounds, then held-out."""
    # Whatever else lies there, such as a copy, is no round.
    rounds = [path for path in sorted((run / "rounds").glob("[0-9]*")) if path.name.isdecimal()]
    for folder in rounds:
        name = "Search trees" if len(rounds) == 1 else f"Search trees, round {int(folder.name)}"
        files = sorted(folder.glob("trees/*.jsonl"))
        credit = folder / "credit" / "signals.jsonl"
        yield f"trees{folder.name}", name, files, folder / "data", credit
    for when, name in (("before", "untrained"), ("after", "trained")):
        folder = run / "eval" / "trees"
        files, credit = sorted(folder.glob(f"{when}.jsonl")), folder / f"{when}-signals.jsonl"
        yield f"heldout-{when}", f"Held-out trees, {name}", files, None, credit


def read_yaml(path: Path) -> Mapping[str, Any]:
    """The content of a YAML file; empty without one."""
    return (strict_yaml.load(path.read_bytes()) or {}) if path.exists() else {}
