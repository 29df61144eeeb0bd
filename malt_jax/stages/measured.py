"""What the evaluation of a run left on disk, and the table of one run or of several seeds."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from malt_jax.evaluation.calibration import calibration
from malt_jax.evaluation.results import SystemInfo, summarise, with_seeds
from malt_jax.evaluation.systems import SINGLE_AGENT
from malt_jax.evaluation.tables import to_csv, to_latex, to_markdown
from malt_jax.stages.names import EVAL
from malt_jax.stages.session import Session
from malt_jax.stages.variants import planned
from malt_jax.storage import manifest
from malt_jax.storage.atomic import json_text, write_text
from malt_jax.storage.hashing import sha256_all
from malt_jax.storage.journal import Journal
from malt_jax.storage.jsonl import read_lines
from malt_jax.storage.rundir import RunDir

HELD_OUT = ("before", "after")
"""Whole trees of some held-out questions: untrained and trained."""


@dataclass(frozen=True)
class Measured:
    """The records of every system of a run, and what the table says about them."""

    systems: dict[str, SystemInfo]
    records: dict[str, list[dict[str, Any]]]
    files: dict[str, str]
    """SHA-256 of each file of records, by its path in the run."""


def measured(session: Session) -> Measured:
    """Reads the finished evaluation of a run and its variants, checked against their seals."""
    systems, variants = planned(session)
    root = session.run.path
    runs = [(session.run, systems)]
    for variant in variants:
        runs.append((RunDir.existing(root / "ablations" / variant.folder), [variant.system]))
    infos, paths = {}, {}
    for run, own in runs:
        seconds = seconds_by_system(run)
        for system in own:
            paths[system.name] = run.eval(system.name)
            infos[system.name] = SystemInfo(system.label, system.votes, seconds.get(system.name))
        manifest.verify(run, [run.eval(system.name) for system in own])
    hashes = sha256_all(list(paths.values()))
    names = (path.relative_to(root).as_posix() for path in paths.values())
    return Measured(
        infos,
        {name: list(read_lines(path)) for name, path in paths.items()},
        dict(zip(names, hashes, strict=True)),
    )


def seconds_by_system(run: RunDir) -> dict[str, float]:
    """Seconds a question and draw of each system, over all blocks."""
    blocks = list(Journal.block_costs(run, EVAL).values())
    total: dict[str, float] = defaultdict(float)
    for block in blocks:
        for name, share in block["systems"].items():
            total[name] += share * block["questions"]
    questions = sum(block["questions"] for block in blocks)
    return {name: share / questions for name, share in total.items()}


def held_out_trees(run: RunDir, when: str) -> Path:
    """Where the trees of `HELD_OUT` lie."""
    return run.path / "eval" / "trees" / f"{when}.jsonl"


def summarise_run(session: Session) -> dict[str, Any]:
    """The content of a run's `results.json`."""
    found = measured(session)
    counts = session.run.data(session.config.rounds - 1, "counts").with_suffix(".json")
    return _summarise(
        [session],
        [found],
        found.files,
        cost=costs(session.run),
        labels=json.loads(counts.read_text()) if counts.exists() else {},
    )


def summarise_seeds(sessions: Sequence[Session]) -> dict[str, Any]:
    """The same for runs that differ in their seed alone: pooled, and seed by seed."""
    found = [measured(session) for session in sessions]
    files = {
        f"seed {session.config.seed}, {file}": digest
        for session, one in zip(sessions, found, strict=True)
        for file, digest in one.files.items()
    }
    return _summarise(sessions, found, files)


def _summarise(
    sessions: Sequence[Session], found: Sequence[Measured], files: Mapping[str, str], **more: Any
) -> dict[str, Any]:
    first = sessions[0]
    config = first.config
    seeds = [session.config.seed for session in sessions]
    records = {seed: one.records for seed, one in zip(seeds, found, strict=True)}
    levels = {q.id: q.meta["level"] for q in first.eval_questions if "level" in q.meta}
    before = [held_out_trees(session.run, HELD_OUT[0]) for session in sessions]
    trees = [tree for path in before if path.exists() for tree in read_lines(path)]
    searched = [len(session.train_questions) for session in sessions]
    facts = {
        "model": manifest.load(first.run).get("model"),
        "task": config.task.name,
        **({"seed": seeds[0]} if len(seeds) == 1 else {"seeds": ", ".join(map(str, seeds))}),
        "sharing": config.sharing,
        "rounds": config.rounds,
        "train_questions": searched[0],
        # Reading a run's training questions refuses those that are also evaluated, by their text.
        "train_questions_evaluated": 0,
    }
    return summarise(
        with_seeds(records),
        _mean_seconds(found),
        config.eval.baseline,
        single_agent=SINGLE_AGENT,
        levels=levels,
        run=facts,
        calibration=calibration(trees),
        sources=files,
        confidence=config.eval.confidence,
        **more,
    )


def _mean_seconds(found: Sequence[Measured]) -> dict[str, SystemInfo]:
    infos = {}
    for name, info in found[0].systems.items():
        seconds = [one.systems[name].seconds for one in found]
        known = [value for value in seconds if value is not None]
        mean = sum(known) / len(known) if known else None
        infos[name] = SystemInfo(info.label, info.votes, mean)
    return infos


def costs(run: RunDir) -> dict[str, Any]:
    """What each stage cost, by its name."""
    folder = run.path / "cost"
    names = sorted(folder.glob("*.json")) if folder.exists() else []
    return {p.stem: json.loads(p.read_text()) for p in names if p.stem != "eval-blocks"}


TABLES = {".md": to_markdown, ".tex": to_latex, ".csv": to_csv}
"""The table in other forms than `results.json`, by the ending of its file."""


def result_files(folder: Path, results: dict[str, Any]) -> dict[Path, str]:
    """The text of `results.json`, and of the same table as Markdown, LaTeX and CSV, by file."""
    path = folder / "results.json"
    tables = {path.with_suffix(suffix): table(results) for suffix, table in TABLES.items()}
    return {path: json_text(results), **tables}


def write_results(folder: Path, results: dict[str, Any]) -> list[Path]:
    """Writes the files of `result_files` and returns their paths."""
    files = result_files(folder, results)
    for path, text in files.items():
        write_text(path, text)
    return list(files)
