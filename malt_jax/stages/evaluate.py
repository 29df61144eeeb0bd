"""Evaluate: every system on the same held-out questions, and the table that compares them."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from malt_jax.credit.contrast import contrast
from malt_jax.credit.verdict import verdict_readers
from malt_jax.evaluation.credit_table import contrast_table
from malt_jax.evaluation.rollouts import RolloutContext, run_systems
from malt_jax.evaluation.schema import Results
from malt_jax.evaluation.systems import System
from malt_jax.progress import counted
from malt_jax.stages.ablate import opened, train_variant
from malt_jax.stages.credit import measure, records
from malt_jax.stages.measured import (
    HELD_OUT,
    held_out_signals,
    held_out_trees,
    result_files,
    summarise_run,
)
from malt_jax.stages.names import EVAL
from malt_jax.stages.other_models import load_other
from malt_jax.stages.policies import WeightLoader, identities, policies_after
from malt_jax.stages.search import grown
from malt_jax.stages.session import Session
from malt_jax.stages.variants import planned
from malt_jax.storage.journal import Journal
from malt_jax.storage.jsonl import read_records
from malt_jax.tasks.base import Question
from malt_jax.tree.node import Forest, Tree
from malt_jax.tree.policies import BASE


def evaluate(session: Session) -> Results:
    """Runs every system, writes `results.json` and the tables, and returns the results."""
    systems, variants = planned(session)
    with session.journal(EVAL, inputs=True) as journal:
        if not journal.done:
            roll_out(session, systems, journal)
            _held_out_trees(session, journal)
            for variant in variants:
                with opened(session, variant) as sub:
                    train_variant(session, sub)
                    # `finishes=False`, because the run's own evaluation writes the variant's table.
                    with sub.journal(EVAL, inputs=True, finishes=False) as its_journal:
                        roll_out(sub, [variant.system], its_journal)
            session.progress.note(f"{EVAL}: comparing systems")
            # The table is made of the sealed files and not of what is in memory, so it is the same
            # after a restart.
            for path, text in result_files(session.run.path, summarise_run(session)).items():
                journal.write_text(path, text)
    return json.loads(session.run.results.read_text())


def roll_out(session: Session, systems: Sequence[System], journal: Journal) -> None:
    """One record per question and draw in each system's file, a block of questions at a time."""
    config = session.config
    paths = {system.name: session.run.eval(system.name) for system in systems}

    def files(number: int, questions: Sequence[Question]) -> Mapping[Path, set[tuple[str, int]]]:
        return {
            paths[system.name]: {(q.id, draw) for q in questions for draw in range(system.draws)}
            for system in systems
        }

    # By the model that answers; those of one model share calls. A context is made when the first
    # block lacks something: a finished evaluation loads no weights.
    groups: dict[str | None, list[System]] = defaultdict(list)
    for system in systems:
        groups[system.model].append(system)
    contexts: dict[str | None, RolloutContext] = {}
    for block in journal.blocks(
        session.eval_questions,
        config.eval.block,
        files,
        key=("question_id", "draw"),
        # Every block appends to the same files, so they can only be sealed after the last one.
        sealed_apart=False,
    ):
        block.cost["systems"] = {}
        for model, group in groups.items():
            if model not in contexts:
                contexts[model] = _context(session, model)
            draws, seconds = run_systems(
                group, block.items, contexts[model], config.eval.stop_when_certain
            )
            block.cost["systems"] |= seconds
            for name, rows in draws.items():
                block.append(paths[name], [row.to_record() for row in rows])


def _context(session: Session, model: str | None) -> RolloutContext:
    weights: Callable[[str], Any]
    sampler: Any
    if model is None:
        of, of_run = session.bases.sampler_of, WeightLoader(session.trained)
        sampler = session.bases.each(of)
        tokenizer = session.bases.each(lambda role: of(role).model.tokenizer)
        longest = session.bases.each(lambda role: of(role).spec.context)
        weights, meant = of_run, identities(session.trained)
        of_run.check(meant.values())
    else:
        sampler, adapter = load_other(session, model)
        tokenizer, longest = sampler.model.tokenizer, sampler.spec.context
        # One role without training: whatever the turn, it answers with this adapter.
        meant = {(BASE, role.name): BASE for role in session.pipeline.roles}
        weights = lambda _: adapter  # noqa: E731
    return RolloutContext(
        sampler=sampler,
        identities=meant,
        weights=weights,
        tokenizer=tokenizer,
        grader=session.task.grader,
        seed=session.config.seed,
        context=longest,
        overflow=session.config.pipeline.overflow,
        readers=verdict_readers(session.config.pipeline.roles),
        on_batch=lambda batch, calls: session.progress.note(
            f"eval: {batch}: {counted(calls, 'completion')}"
        ),
    )


def _held_out_trees(session: Session, journal: Journal) -> None:
    """Whole trees of some held-out questions, before and after training, with the same keys.

    Beside each are the signals of its nodes, and the log says what the trees show of every role.
    """
    config = session.config
    questions = session.eval_questions[: config.eval.trees]
    if not questions:
        return
    # Round -1 is the base. After the last round the policies are the trained ones.
    rounds = dict(zip(HELD_OUT, (-1, config.rounds - 1), strict=True))
    trees = {when: held_out_trees(session.run, when) for when in rounds}
    for when, path in journal.pending(trees, folders=False):
        count = counted(len(questions), "held-out question")
        session.progress.note(f"{EVAL}: trees of {count} {when} training")
        adapters = policies_after(session.trained, rounds[when])
        # In place of a round's number: no key of a training search is used again.
        forest = grown(session, adapters, "held-out", questions)
        journal.write_lines(path, (tree.to_record() for tree in forest.trees))
    signals = {when: held_out_signals(session.run, when) for when in rounds}
    for when, path in journal.pending(signals, folders=False):
        forest = Forest(list(read_records(trees[when], Tree.from_record)))
        found = measure(session, forest, rounds[when], EVAL, scored=True)
        journal.write_lines(path, records(forest, found))
        shown = contrast_table(contrast(forest.trees, found, config.search.threshold))
        for line in [f"{EVAL}: held-out trees {when} training", *shown.plain()]:
            session.progress.note(line)
