"""Search: every training question becomes a valued tree (method, sections 3.1 and 3.2)."""

from __future__ import annotations

import time

from malt_jax.errors import UserError
from malt_jax.progress import counted
from malt_jax.stages.policies import adapters_of_round
from malt_jax.stages.session import Session, search_stage
from malt_jax.storage import manifest
from malt_jax.storage.jsonl import append_lines, read_lines, recover
from malt_jax.storage.signals import raise_if_stopped
from malt_jax.storage.writers import meet
from malt_jax.tree.expand import expand
from malt_jax.tree.records import grade_trees


def search(session: Session, round: int) -> None:
    """Expands and grades all trees of a round, a block of questions at a time.

    A block is one shard file, written in one append and then sealed, so a kill costs at most one
    block. A block that was written in part is drawn again whole, because that gives the very same
    bytes, and only its missing lines are appended.
    """
    stage = search_stage(round)
    if session.done(stage):
        return
    session.record_inputs()
    questions, config = session.train_questions, session.config
    if not questions:
        raise UserError("task.num_train: no training questions; at least one is needed.")
    size = config.search.block
    adapters = adapters_of_round(session, round - 1)
    sealed = {path.name for path in manifest.sealed_units(session.run, stage)}
    figures, started = session.watch_sampler(), time.perf_counter()
    rewards: list[float] = []
    for start in range(0, len(questions), size):
        block = questions[start : start + size]
        path = session.run.trees(round) / f"{_prefix(session)}{start // size:05d}.jsonl"
        if path.name in sealed:
            manifest.verify(session.run, [path])
            continue
        recover(path)
        meet("shard recovered")
        written = {r["question_id"] for r in read_lines(path)} if path.exists() else set()
        missing = [question for question in block if question.id not in written]
        if missing:
            trees = expand(
                block,
                session.pipeline,
                session.sampler,
                session.model.tokenizer,
                seed=config.seed,
                round=round,
                adapters=adapters,
                context=session.context,
                overflow=config.pipeline.overflow,
                on_level=lambda role, calls: session.progress.note(
                    f"{stage}: {role.name}, {counted(calls, 'completion')}"
                ),
            )
            forest = grade_trees(trees, session.pipeline, session.task.grader, config.search)
            rewards.append(float(forest.rewards.mean()))
            ids = {question.id for question in missing}
            append_lines(path, [r for r in forest.records if r["question_id"] in ids])
        session.seal(stage, [path], done=False)
        session.progress.update(
            stage,
            min(start + size, len(questions)),
            len(questions),
            **({"leaves_right": f"{sum(rewards) / len(rewards):.1%}"} if rewards else {}),
        )
        raise_if_stopped()
    cost = {**figures(), "seconds": time.perf_counter() - started}
    session.seal(stage, [session.record_cost(stage, cost)])


def _prefix(session: Session) -> str:
    """Shard files of independent slices carry their range, so that joined runs cannot collide."""
    shard = session.config.search.shard
    return "" if shard == "1/1" else f"{shard.replace('/', 'of')}-"
