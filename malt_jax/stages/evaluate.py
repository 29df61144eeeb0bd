"""Evaluate: every system on the same held-out questions, and the table that compares them."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from functools import partial

from malt_jax.evaluation.rollouts import RolloutContext, run_systems
from malt_jax.evaluation.schema import Results
from malt_jax.evaluation.systems import System
from malt_jax.progress import counted
from malt_jax.stages.ablate import opened, train_variant
from malt_jax.stages.measured import (
    HELD_OUT,
    block_costs,
    block_costs_path,
    held_out_trees,
    summarise_run,
    write_results,
)
from malt_jax.stages.policies import adapters_of_round, load, policy_identities
from malt_jax.stages.session import Session
from malt_jax.stages.variants import Variant, planned
from malt_jax.storage import manifest
from malt_jax.storage.atomic import write_json
from malt_jax.storage.jsonl import append_lines, read_lines, recover
from malt_jax.storage.signals import raise_if_stopped
from malt_jax.storage.writers import meet, writes
from malt_jax.tree.expand import expand
from malt_jax.tree.records import grade_trees

STAGE = "eval"


def evaluate(session: Session) -> Results:
    """Runs what is not run yet, writes `results.json` and `results.md`, returns the results."""
    systems, variants = planned(session)
    if not session.done(STAGE):
        roll_out(session, systems)
        _held_out_trees(session)
        for variant in variants:
            _measure(session, variant)
        session.progress.note(f"{STAGE}: comparing systems")
        files = write_results(session.run.path, summarise_run(session))
        session.seal(STAGE, files)
    return json.loads(session.run.results.read_text())


def roll_out(session: Session, systems: Sequence[System]) -> None:
    """One record a question and draw in each system's file, a block of questions at a time."""
    session.record_inputs()
    config, run = session.config, session.run
    questions = session.eval_questions
    paths = {system.name: run.eval(system.name) for system in systems}
    if set(paths.values()) <= set(manifest.sealed_units(run, STAGE)):
        manifest.verify(run, manifest.sealed_units(run, STAGE))
        return
    costs, figures = block_costs(run), session.watch_sampler()
    context = RolloutContext(
        sampler=session.sampler,
        identities=policy_identities(session),
        weights=partial(load, session),
        tokenizer=session.model.tokenizer,
        grader=session.task.grader,
        seed=config.seed,
        context=session.context,
        overflow=config.pipeline.overflow,
        on_batch=lambda who, calls: session.progress.note(
            f"eval: {who}: {counted(calls, 'completion')}"
        ),
    )
    written = {}
    for path in paths.values():
        recover(path)
    meet("shards recovered")
    for name, path in paths.items():
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
            records, seconds = run_systems(systems, block, context)
            for name, rows in records.items():
                rows = [r for r in rows if (r.question_id, r.draw) in owed[name]]
                append_lines(paths[name], [row.to_record() for row in rows])
            costs[str(start)] = {
                "seconds": time.perf_counter() - began,
                "systems": seconds,
                "questions": len(block),
            }
            write_json(block_costs_path(run), costs)
        session.progress.update(STAGE, min(start + len(block), len(questions)), len(questions))
        raise_if_stopped()
    total = sum(cost["seconds"] for cost in costs.values())
    cost = session.record_cost(STAGE, {**figures(), "seconds": total})
    session.seal(STAGE, [*paths.values(), cost, block_costs_path(run)], done=False)


def _measure(session: Session, variant: Variant) -> None:
    """Trains one variant of the run and measures its pipeline on the run's own questions."""
    with opened(session, variant) as sub:
        train_variant(session, sub)
        roll_out(sub, [variant.system])


def _held_out_trees(session: Session) -> None:
    """Whole trees of some held-out questions, before and after training, with the same keys."""
    config = session.config
    questions = session.eval_questions[: config.eval.trees]
    for when, round in zip(HELD_OUT, (-1, config.rounds - 1), strict=True):
        path = held_out_trees(session.run, when)
        if not questions or path in manifest.sealed_units(session.run, STAGE):
            continue
        count = counted(len(questions), "held-out question")
        session.progress.note(f"{STAGE}: trees of {count} {when} training")
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
        session.seal(STAGE, [path], done=False)
        raise_if_stopped()
