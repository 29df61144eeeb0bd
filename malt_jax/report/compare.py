"""Two runs side by side on one page: results, what the trees teach, training, cost, answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from malt_jax.evaluation import sections
from malt_jax.evaluation.between import Pairing, paired_rows
from malt_jax.evaluation.credit_table import NOTE, contrast_table
from malt_jax.evaluation.records import DrawRecord
from malt_jax.evaluation.schema import Results
from malt_jax.evaluation.systems import system_without_temperature
from malt_jax.evaluation.table import Table, numbers, texts
from malt_jax.report import answers, embed, figures, page
from malt_jax.report.build import add_groups
from malt_jax.report.drawing import Gallery
from malt_jax.report.prompts import Templates
from malt_jax.storage import atomic
from malt_jax.storage.jsonl import read_records

MARK = '<meta name="generator" content="malt report --compare">'
"""In every page of a comparison, which may therefore be replaced by another one."""
NAMES = ("A", "B")


@dataclass(frozen=True)
class Side:
    """One of the two runs."""

    path: Path
    questions: answers.Questions
    """The evaluation questions by id."""
    results: Results | None
    threshold: float
    roles: Sequence[str]
    clusters: Mapping[str, str] = field(default_factory=dict)
    """Of questions that are not independent, by id."""


def write_comparison(
    path: Path, sides: tuple[Side, Side], differing: Sequence[tuple[str, str, str]]
) -> None:
    """Writes the page at `path`; `differing` are config fields with their two values.

    Questions are the same if their text and reference answer are, whatever their ids.
    """
    gallery = Gallery()
    both = same_questions(sides[0].questions, sides[1].questions)
    with atomic.scratch(path) as folder:
        pages, templates = embed.Pages(folder), Templates()
        rows = _pairings(sides, both)
        ours = [row for row in rows if system_without_temperature(row.first) == "malt"]
        groups = [
            group
            for name, side in zip(NAMES, sides, strict=True)
            for group in add_groups(side.path, side.threshold, pages, templates, name)
        ]
        systems, entries = answers.add_answers(_sources(sides, both), pages)
        pages.close()
        data, inline = embed.explorer_data(
            folder,
            pages,
            groups,
            templates,
            systems,
            _labels(sides),
            entries,
            address=f"{embed.beside(path).name}/",
            pairing={
                "name": "A and B",
                "before": [
                    f"A: {name}" for name in answers.names_in(sides[0].results, "malt", "sa")
                ],
                "after": [
                    f"B: {name}" for name in answers.names_in(sides[1].results, "malt", "sa")
                ],
            },
        )
        text = page.render(
            "compare.html.j2",
            mark=MARK,
            name=f"{sides[0].path.name} and {sides[1].path.name}",
            sides=list(zip(NAMES, sides, strict=True)),
            both=len(both),
            rows=rows,
            measured=all(side.results for side in sides),
            ours=[row.first["label"] for row in ours],
            # The trained pipeline's largest vote, or else the first row.
            headline=max(ours or rows[:1], key=lambda row: row.first["votes"], default=None),
            differing=Table(
                texts("field", *NAMES), [[field, one, other] for field, one, other in differing]
            ),
            credit=[
                (group.name, contrast_table(group.totals.contrast.roles(), group.pairs))
                for group in groups
                if group.pairs is not None
            ],
            credit_note=NOTE,
            curves=_curves(sides, gallery),
            cost=_cost(sides),
            explorer=bool(groups or entries),
            data=data,
            pages=inline,
        )
        embed.write_page(path, text, None if inline else folder)


def same_questions(first: answers.Questions, second: answers.Questions) -> dict[str, str]:
    """The second run's id of each question that both have."""
    by_text = {text: id for id, text in second.items()}
    return {id: by_text[text] for id, text in first.items() if text in by_text}


def _sources(sides: tuple[Side, Side], both: Mapping[str, str]) -> list[answers.Source]:
    # The page names a question as the first run does.
    ids = ({id: id for id in both}, {id: first for first, id in both.items()})
    return [
        answers.Source(side.path / "eval", _systems(side), side.questions, f"{name}: ", own)
        for name, side, own in zip(NAMES, sides, ids, strict=True)
    ]


def _systems(side: Side) -> list[str]:
    return [row["system"] for row in side.results["systems"]] if side.results else []


def _labels(sides: tuple[Side, Side]) -> dict[str, str]:
    return {
        f"{name}: {system}": f"{name}: {label}"
        for name, side in zip(NAMES, sides, strict=True)
        for system, label in (sections.titles(side.results) if side.results else {}).items()
    }


def _pairings(sides: tuple[Side, Side], both: Mapping[str, str]) -> list[Pairing]:
    found = [(side.path, side.results) for side in sides if side.results]
    if len(found) < 2:
        return []
    shared = {*_systems(sides[0])} & {*_systems(sides[1])}

    def draws(path: Path, results: Results) -> dict[str, list[DrawRecord]]:
        # The results name the files, because an ablation's are in a folder of its own.
        files = {Path(file).stem: path / file for file in results["records"]}
        return {name: list(read_records(files[name], DrawRecord.from_record)) for name in shared}

    first, second = found
    clusters = sides[0].clusters
    return paired_rows((first[1], second[1]), (draws(*first), draws(*second)), both, clusters)


def _curves(sides: tuple[Side, Side], gallery: Gallery) -> list[str]:
    """Each learning curve of either run, with that of the other in the same figure."""
    series = [page.training_series(side.path / "metrics.jsonl") for side in sides]
    found = []
    for key in dict.fromkeys([*series[0], *series[1]]):
        round, *names = key
        title = page.curve_title(*names) + (f", round {round}" if round else "")
        named = {n: one[key] for n, one in zip(NAMES, series, strict=True) if key in one}
        found.append(gallery.add(title, figures.two_curves(title, named)))
    return [svg for svg in found if svg]


def _cost(sides: tuple[Side, Side]) -> Table:
    """Seconds, tokens and bytes of each stage in both runs."""
    cost: list[Mapping[str, Mapping[str, Any]]] = [
        page.stages(side.results["cost"], side.roles) if side.results else {} for side in sides
    ]
    rows = []
    for stage in dict.fromkeys([*cost[0], *cost[1]]):
        a, b = (one.get(stage, {}) for one in cost)
        seconds = [one.get("seconds") for one in (a, b)]
        tokens = [one.get("tokens", one.get("tokens_generated")) for one in (a, b)]
        first, second = seconds
        ratio = f"{second / first:.2f}" if first and second else ""
        times = ["" if value is None else f"{value:.1f}" for value in seconds]
        counts = ["" if value is None else f"{value:,.0f}" for value in tokens]
        rows.append([stage, *times, ratio, *counts])
    columns = numbers("A, seconds", "B, seconds", "B / A", "A, tokens", "B, tokens")
    return Table([*texts("stage"), *columns], rows)
