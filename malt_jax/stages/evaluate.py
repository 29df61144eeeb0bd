"""Evaluate: every system on the same held-out questions, and the table that compares them."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from malt_jax.config import Ablation
from malt_jax.errors import UserError
from malt_jax.evaluation.calibration import calibration
from malt_jax.evaluation.results import SystemInfo, row_name, summarise
from malt_jax.evaluation.rollouts import Stage, run_systems
from malt_jax.evaluation.systems import System, make_systems
from malt_jax.evaluation.tables import to_latex, to_markdown
from malt_jax.stages.ablate import opened, trained_variant
from malt_jax.stages.policies import adapters_of_round, policy_table
from malt_jax.stages.session import Session
from malt_jax.storage import manifest
from malt_jax.storage.atomic import write_json, write_text
from malt_jax.storage.jsonl import append_lines, read_lines, recover
from malt_jax.storage.signals import raise_if_stopped
from malt_jax.storage.writers import writes
from malt_jax.tree.expand import expand
from malt_jax.tree.records import grade_trees

STAGE = "eval"


def evaluate(session: Session) -> dict[str, Any]:
    """Runs what is not run yet, writes `results.json` and `results.md`, returns the results."""
    config = session.config
    systems = make_systems(config.eval, session.pipeline, session.task.templates)
    _check_baseline(config.eval.baseline, systems)
    if not session.done(STAGE):
        roll_out(session, systems)
        _held_out_trees(session)
        variants = [_variant(session, ablation) for ablation in config.ablations]
        results = summarise_run(session, systems, variants)
        write_json(session.run.results, results)
        write_text(session.run.results_table, to_markdown(results))
        table = session.run.results.with_suffix(".tex")
        write_text(table, to_latex(results))
        units = [session.run.results, session.run.results_table, table]
        manifest.seal(session.run, STAGE, units)
    return json.loads(session.run.results.read_text())


def roll_out(session: Session, systems: Sequence[System]) -> None:
    """One record a question and draw in each system's file, a block of questions at a time."""
    session.record_inputs()
    config, run = session.config, session.run
    questions = session.eval_questions
    paths = {system.name: run.eval(system.name) for system in systems}
    if set(paths.values()) <= set(manifest.sealed_units(run, STAGE)):
        manifest.verify(run, paths.values())
        return
    costs_path = run.path / "cost" / "eval-blocks.json"
    costs = json.loads(costs_path.read_text()) if costs_path.exists() else {}
    stage = Stage(
        sampler=session.sampler,
        policies=policy_table(session),
        tokenizer=session.model.tokenizer,
        grader=session.task.grader,
        seed=config.seed,
        context=session.context,
        overflow=config.pipeline.overflow,
        on_calls=lambda who, calls: session.progress.note(f"eval: {who} x{calls}"),
    )
    written = {}
    for name, path in paths.items():
        recover(path)
        lines = read_lines(path) if path.exists() else []
        written[name] = {(r["question_id"], r["draw"]) for r in lines}
    for start in range(0, len(questions), config.eval.block):
        block = questions[start : start + config.eval.block]
        owed = {
            system.name: {(q.id, draw) for q in block for draw in range(system.draws)}
            - written[system.name]
            for system in systems
        }
        if any(owed.values()):
            # The whole block, also where part of it is written: the same batches, the same bytes.
            began = time.perf_counter()
            records, seconds = run_systems(systems, block, stage)
            for name, rows in records.items():
                rows = [r for r in rows if (r["question_id"], r["draw"]) in owed[name]]
                append_lines(paths[name], rows)
            costs[str(start)] = {
                "seconds": time.perf_counter() - began,
                "systems": seconds,
                "questions": len(block),
            }
            write_json(costs_path, costs)
        session.progress.update(STAGE, min(start + len(block), len(questions)), len(questions))
        raise_if_stopped()
    total = sum(cost["seconds"] for cost in costs.values())
    cost = session.record_cost(STAGE, {"seconds": total, **session.sampler.stats.as_dict()})
    manifest.seal(run, STAGE, [*paths.values(), cost], done=False)


@dataclass(frozen=True)
class Variant:
    """An ablation's trained pipeline: how the table calls it, and its records."""

    info: SystemInfo
    name: str
    records: list[dict[str, Any]]


def _variant(session: Session, ablation: Ablation) -> Variant:
    """Trains one variant of the run and measures its pipeline on the run's own questions."""
    with opened(session, ablation) as sub:
        system = trained_variant(session, sub)
        roll_out(sub, [system])
        changes = ", ".join(f"{field}={value}" for field, value in ablation.set.items())
        info = SystemInfo(f"MALT, {changes}", system.votes, _seconds(sub).get(system.name))
        records = list(read_lines(sub.run.eval(system.name)))
        return Variant(info, f"malt-{ablation.name}", records)


def summarise_run(
    session: Session, systems: Sequence[System], variants: Sequence[Variant] = ()
) -> dict[str, Any]:
    """The content of `results.json`, from the records on disk."""
    config, run = session.config, session.run
    records = {system.name: list(read_lines(run.eval(system.name))) for system in systems}
    seconds = _seconds(session)
    infos = {s.name: SystemInfo(s.label, s.votes, seconds.get(s.name)) for s in systems}
    records |= {variant.name: variant.records for variant in variants}
    infos |= {variant.name: variant.info for variant in variants}
    levels = {q.id: q.meta["level"] for q in session.eval_questions if "level" in q.meta}
    before = _held_out_path(session, "before")
    return summarise(
        records,
        infos,
        config.eval.baseline,
        single_agent=systems[0].name,
        levels=levels or None,
        run={
            "model": manifest.load(run).get("model"),
            "task": config.task.name,
            "seed": config.seed,
            "sharing": config.sharing,
            "rounds": config.rounds,
            "train_questions": len(session.train_questions),
        },
        cost=costs(session),
        labels=_labels(session),
        calibration=calibration(read_lines(before)) if before.exists() else None,
    )


def costs(session: Session) -> dict[str, Any]:
    """What each stage cost, by its name."""
    folder = session.run.path / "cost"
    names = sorted(folder.glob("*.json")) if folder.exists() else []
    return {p.stem: json.loads(p.read_text()) for p in names if p.stem != "eval-blocks"}


def _seconds(session: Session) -> dict[str, float]:
    """Seconds a question and draw of each system, over all blocks."""
    path = session.run.path / "cost" / "eval-blocks.json"
    blocks = list(json.loads(path.read_text()).values()) if path.exists() else []
    total: dict[str, float] = defaultdict(float)
    for block in blocks:
        for name, share in block["systems"].items():
            total[name] += share * block["questions"]
    questions = sum(block["questions"] for block in blocks)
    return {name: share / questions for name, share in total.items()}


def _labels(session: Session) -> dict[str, Any]:
    last = session.config.rounds - 1
    path = session.run.data(last, "counts").with_suffix(".json")
    return json.loads(path.read_text()) if path.exists() else {}


def _held_out_trees(session: Session) -> None:
    """Whole trees of some held-out questions, before and after training, with the same keys."""
    config = session.config
    questions = session.eval_questions[: config.eval.trees]
    for when, round in (("before", -1), ("after", config.rounds - 1)):
        path = _held_out_path(session, when)
        if not questions or path in manifest.sealed_units(session.run, STAGE):
            continue
        trees = expand(
            questions,
            session.pipeline,
            session.sampler,
            session.model.tokenizer,
            seed=config.seed,
            round="held-out",
            adapters=adapters_of_round(session, round),
            context=session.context,
            overflow=config.pipeline.overflow,
        )
        forest = grade_trees(trees, session.pipeline, session.task.grader, config.search)
        if writes():
            path.unlink(missing_ok=True)
        append_lines(path, forest.records)
        manifest.seal(session.run, STAGE, [path], done=False)
        raise_if_stopped()


def _held_out_path(session: Session, when: str) -> Any:
    return session.run.path / "eval" / "trees" / f"{when}.jsonl"


def _check_baseline(baseline: str, systems: Sequence[System]) -> None:
    """Said before the evaluation, not after hours of it."""
    rows = [row_name(s.name, k) for s in systems for k in s.votes]
    single = systems[0]
    rows += [row_name(single.name, k) for k in range(1, single.draws + 1)]
    if baseline not in rows:
        raise UserError(
            f"eval.baseline: {baseline!r} is not a row of the table; "
            f"allowed: {', '.join(dict.fromkeys(rows))}."
        )
