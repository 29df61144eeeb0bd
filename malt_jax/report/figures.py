"""The figures of a report as files of their own, for a paper or a slide."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from malt_jax.evaluation.svg import standalone
from malt_jax.storage import atomic


def write_figures(folder: Path, figures: Mapping[str, str]) -> None:
    """One SVG file a figure, replacing the folder; figures with nothing to draw are left out."""
    with atomic.atomic_directory(folder, replace=True) as built:
        for name, svg in figures.items():
            if svg:
                (built / f"{name}.svg").write_text(standalone(svg), encoding="utf-8")


def named(
    evaluation: Mapping[str, Any] | None,
    trees: Sequence[Mapping[str, Any]],
    curves: Sequence[Mapping[str, Any]],
) -> dict[str, str]:
    """Every figure of the page by a name for its file."""
    return {_slug(name): svg for name, svg in _figures(evaluation, trees, curves)}


def _figures(
    evaluation: Mapping[str, Any] | None,
    trees: Sequence[Mapping[str, Any]],
    curves: Sequence[Mapping[str, Any]],
) -> Iterator[tuple[str, str]]:
    if evaluation:
        yield "accuracy against tokens", evaluation["scatter"]
        yield "cost by stage", evaluation["cost"]
        for role, svg in evaluation["reliability"].items():
            yield f"reliability {role}", svg
    for found in trees:
        for role, svg in found["histograms"].items():
            yield f"values {found['name']} {role}", svg
        yield f"reward by depth {found['name']}", found["depth"]
    for curve in curves:
        for title, svg in curve["figures"].items():
            yield f"training {curve['round']} {title}", svg


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
