"""The finished evaluation of a run: its draws, their cost, and the table of one or more seeds."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from malt_jax.evaluation.calibration import calibration
from malt_jax.evaluation.records import DrawRecord
from malt_jax.evaluation.results import SystemInfo, summarise, with_seeds
from malt_jax.evaluation.schema import Results
from malt_jax.evaluation.systems import SINGLE_AGENT, at_temperature
from malt_jax.evaluation.tables import to_csv, to_latex, to_markdown
from malt_jax.hashing import sha256_all
from malt_jax.stages.names import EVAL
from malt_jax.stages.session import Session
from malt_jax.stages.variants import planned
from malt_jax.storage import manifest
from malt_jax.storage.atomic import json_text, write_text
from malt_jax.storage.journal import Journal
from malt_jax.storage.jsonl import read_records
from malt_jax.storage.rundir import RunDir
from malt_jax.tree.node import Tree

HELD_OUT = ("before", "after")
"""The two sets of trees of held-out questions: before and after training."""
TABLES = {".md": to_markdown, ".tex": to_latex, ".csv": to_csv}
"""The other forms of `results.json`, by the suffix of their file."""


@dataclass(frozen=True)
class Measured:
    """The draws of every system of one run and its variants."""

    systems: dict[str, SystemInfo]
    draws: dict[str, list[DrawRecord]]
    files: dict[str, str]
    """SHA-256 of each file of draws, by its path in the run."""


def measured(session: Session) -> Measured:
    """Reads the finished evaluation of a run and its variants, checked against their seals."""
    systems, variants = planned(session)
    root = session.run.path
    runs = [(session.run, systems)]
    for variant in variants:
        runs.append((RunDir.existing(root / "ablations" / variant.folder), [variant.system]))
    infos, paths = {}, {}
    baseline = session.config.eval.baseline
    for run, own in runs:
        seconds = seconds_by_system(run)
        for system in own:
            paths[system.name] = run.eval(system.name)
            infos[system.name] = SystemInfo(
                system.label,
                system.votes,
                seconds.get(system.name),
                system.single_agent,
                at_temperature(baseline, system.temperature),
                system.temperature,
            )
        # A variant's files are sealed in its own manifest, not in the run's.
        manifest.verify(run, [run.eval(system.name) for system in own])
    # The results name the files they were computed from, by their hashes.
    hashes = sha256_all(list(paths.values()))
    names = (path.relative_to(root).as_posix() for path in paths.values())
    return Measured(
        infos,
        {name: list(read_records(p, DrawRecord.from_record)) for name, p in paths.items()},
        dict(zip(names, hashes, strict=True)),
    )


def seconds_by_system(run: RunDir) -> dict[str, float]:
    """Seconds per question and draw of each system, over all blocks."""
    blocks = list(Journal.block_costs(run, EVAL).values())
    questions = sum(block["questions"] for block in blocks)
    total: dict[str, float] = defaultdict(float)
    for block in blocks:
        for name, share in block["systems"].items():
            # A block's figure is a mean per question and draw, so blocks count by their questions.
            total[name] += share * block["questions"]
    return {name: seconds / questions for name, seconds in total.items()}


def held_out_trees(run: RunDir, when: str) -> Path:
    """The file of the trees of held-out questions, `when` being one of `HELD_OUT`."""
    return run.path / "eval" / "trees" / f"{when}.jsonl"


def held_out_signals(run: RunDir, when: str) -> Path:
    """The file of the signals of those trees, one line per node."""
    return run.path / "eval" / "trees" / f"{when}-signals.jsonl"


def summarise_run(session: Session, found: Measured | None = None) -> Results:
    """The content of a run's `results.json`; `found`: its draws, if they are at hand."""
    found = found or measured(session)
    counts = session.run.data(session.config.rounds - 1, "counts").with_suffix(".json")
    labels = json.loads(counts.read_text()) if counts.exists() else {}
    labels.pop("credit", None)  # shares and not counts; the report has them beside the trees
    return _summarise([session], [found], found.files, costs(session.run), labels)


def summarise_seeds(sessions: Sequence[Session]) -> Results:
    """The results of several runs that differ in their seed only: pooled, and seed by seed."""
    found = [measured(session) for session in sessions]
    files = {
        f"seed {session.config.seed}, {file}": digest
        for session, one in zip(sessions, found, strict=True)
        for file, digest in one.files.items()
    }
    return _summarise(sessions, found, files, {}, {})


def _summarise(
    sessions: Sequence[Session],
    found: Sequence[Measured],
    files: Mapping[str, str],
    cost: Mapping[str, Any],
    labels: Mapping[str, Any],
) -> Results:
    first = sessions[0]
    config = first.config
    seeds = [session.config.seed for session in sessions]
    untrained = [held_out_trees(session.run, HELD_OUT[0]) for session in sessions]
    trees = [t for p in untrained if p.exists() for t in read_records(p, Tree.from_record)]
    # Every session checks here that its training questions are not evaluated, by their text.
    searched = [len(session.train_questions) for session in sessions]
    known = manifest.load(first.run)
    facts = {
        "model": known.get("model"),
        **{f"model of the {role}": base for role, base in known.get("bases", {}).items()},
        "task": config.task.name,
        # Named only where it is not what a table of results is expected to be of.
        **({"split": config.eval.split} if config.eval.split != "eval" else {}),
        **({"seed": seeds[0]} if len(seeds) == 1 else {"seeds": ", ".join(map(str, seeds))}),
        "sharing": config.sharing,
        "rounds": config.rounds,
        "train_questions": searched[0],
        "train_questions_evaluated": first.trained_on_evaluated,
    }
    return summarise(
        with_seeds({seed: one.draws for seed, one in zip(seeds, found, strict=True)}),
        _mean_seconds(found),
        config.eval.baseline,
        single_agent=SINGLE_AGENT,
        levels={q.id: q.meta["level"] for q in first.eval_questions if "level" in q.meta},
        clusters=clusters_of(first),
        run=facts,
        cost=cost,
        labels=labels,
        calibration=calibration(trees),
        sources=files,
        confidence=config.eval.confidence,
    )


def clusters_of(session: Session) -> dict[str, str]:
    """The cluster of each evaluated question that is not independent of others, by id."""
    return {
        question.id: str(question.meta["cluster"])
        for question in session.eval_questions
        if question.meta.get("cluster") not in (None, "")
    }


def _mean_seconds(found: Sequence[Measured]) -> dict[str, SystemInfo]:
    """The systems with their seconds averaged over the runs that measured them."""
    infos = {}
    for name, info in found[0].systems.items():
        seconds = [one.systems[name].seconds for one in found]
        known = [value for value in seconds if value is not None]
        infos[name] = replace(info, seconds=sum(known) / len(known) if known else None)
    return infos


def costs(run: RunDir) -> dict[str, Any]:
    """The cost of each stage, by its name."""
    paths = sorted((run.path / "cost").glob("*.json"))
    # The blocks of the evaluation are summed in its own file already.
    return {p.stem: json.loads(p.read_text()) for p in paths if p.stem != "eval-blocks"}


def result_files(folder: Path, results: Results) -> dict[Path, str]:
    """The text of `results.json`, and of the same table as Markdown, LaTeX and CSV, by file."""
    path = folder / "results.json"
    tables = {path.with_suffix(suffix): to_text(results) for suffix, to_text in TABLES.items()}
    return {path: json_text(results), **tables}


def write_results(folder: Path, results: Results) -> list[Path]:
    """Writes the files of `result_files` and returns their paths."""
    files = result_files(folder, results)
    for path, text in files.items():
        write_text(path, text)
    return list(files)
