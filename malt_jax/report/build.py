"""From a run directory to `report.html` and `plots/`, with `report_data/` if there is much data."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from malt_jax.errors import UserError
from malt_jax.evaluation import sections
from malt_jax.report import answers, embed, page, trees
from malt_jax.report.drawing import Gallery
from malt_jax.report.prompts import Templates
from malt_jax.storage import atomic
from malt_jax.storage.jsonl import read_json

PLOTS = "plots"
"""The folder of the figures as files."""


def build_report(run: str | os.PathLike, questions: answers.Questions | None = None) -> Path:
    """Writes the report of a run, and its figures as files, and returns the report's path.

    `questions` gives the text and reference answer of evaluation questions by id; without it the
    page shows their first prompt. A sentence replaces whatever the run does not have yet. Raises
    `UserError` if the folder holds nothing to report.
    """
    run = Path(run)
    results = read_json(run / "results.json", "remove it and run `malt eval`")
    config = _read_yaml(run / "config.yaml")
    threshold = float((config.get("search") or {}).get("threshold", 0.5))
    gallery = Gallery()
    curves = page.learning_curves(run / "metrics.jsonl", gallery)
    # The data is collected in a temporary folder, because only its whole size decides whether it
    # becomes part of the page.
    with tempfile.TemporaryDirectory() as folder:
        pages, templates = embed.Pages(Path(folder)), Templates()
        groups = [
            group
            for found in _tree_files(run)
            if (group := trees.add_trees(*found, pages, templates, threshold)).questions
        ]
        order = [row["system"] for row in results["systems"]] if results else []
        systems, entries = answers.add_answers(run / "eval", order, questions or {}, pages)
        pages.close()
        if not (groups or results or entries or curves):
            raise UserError(
                f"{run}: nothing to report: no trees, metrics or results; run `malt search` first."
            )
        inline = pages.bytes <= embed.INLINE_BYTES
        data = {
            "threshold": threshold,
            "last": next((group.totals.roles[-1] for group in groups), "last turn"),
            "folder": None if inline else "report_data/",
            "groups": [
                {"key": g.key, "name": g.name, "trained": g.trained, "questions": g.questions}
                for g in groups
            ],
            "prompts": templates.texts,
            "systems": systems,
            "labels": sections.titles(results) if results else {},
            "evaluation": entries,
        }
        roles = [role["name"] for role in (config.get("pipeline") or {}).get("roles", ())]
        text = page.render(
            name=run.resolve().name,
            results=results,
            evaluation=page.evaluation(results, roles, gallery) if results else None,
            curves=curves,
            trees=[page.trees(group, threshold, gallery) for group in groups],
            explorer=bool(groups or entries),
            data=embed.script_json(data),
            pages=list(embed.scripts(Path(folder))) if inline else [],
        )
        _write_page(run, text, None if inline else Path(folder))
    gallery.write(run / PLOTS)
    return run / "report.html"


def _tree_files(run: Path) -> Iterator[tuple[str, str, list[Path], Path | None, Path]]:
    """Key, name, files, role data and signals of every group of trees: rounds, then held-out."""
    rounds = sorted(path for path in (run / "rounds").glob("[0-9]*") if path.is_dir())
    for folder in rounds:
        name = "Search trees" if len(rounds) == 1 else f"Search trees, round {int(folder.name)}"
        files = sorted(folder.glob("trees/*.jsonl"))
        signals = folder / "credit" / "signals.jsonl"
        yield f"trees{folder.name}", name, files, folder / "data", signals
    for when, name in (("before", "untrained"), ("after", "trained")):
        folder = run / "eval" / "trees"
        files, signals = sorted(folder.glob(f"{when}.jsonl")), folder / f"{when}-signals.jsonl"
        yield f"heldout-{when}", f"Held-out trees, {name}", files, None, signals


def _write_page(run: Path, text: str, pages: Path | None) -> None:
    """Writes the data before the page, so that a page never names data that is not there."""
    beside = run / "report_data"
    if pages:
        with atomic.atomic_directory(beside, replace=True) as built:
            for path in pages.glob("*.js"):
                shutil.copyfile(path, built / path.name)
    atomic.write_text(run / "report.html", text)
    if not pages and beside.exists():
        # An earlier report had more data, and the page does not name this folder any more.
        shutil.rmtree(beside)


def _read_yaml(path: Path) -> Mapping[str, Any]:
    return (yaml.safe_load(path.read_text(encoding="utf-8")) or {}) if path.exists() else {}
