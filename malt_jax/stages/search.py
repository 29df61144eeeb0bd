"""Search: every training question becomes a valued tree (docs/method.md, sections 2 and 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

import malt_jax as malt
from malt_jax.errors import UserError
from malt_jax.progress import counted
from malt_jax.stages.names import search_stage
from malt_jax.stages.policies import policies_after
from malt_jax.stages.session import Session
from malt_jax.tasks.base import Question


def search(session: Session, round: int) -> None:
    """Searches the training questions of a round, one shard file per block of questions."""
    config, stage = session.config, search_stage(round)
    rewards: list[float] = []

    def shard(number: int, questions: Sequence[Question]) -> Mapping[Path, set[tuple[str]]]:
        path = session.run.trees(round) / f"{_prefix(session)}{number:05d}.jsonl"
        return {path: {(question.id,) for question in questions}}

    def say(role: str, completions: int) -> None:
        session.progress.note(f"{stage}: {role}, {counted(completions, 'completion')}")

    with session.journal(stage, inputs=True) as journal, session.profiler.stage(stage):
        if journal.done:  # neither questions nor weights are read again
            return
        if not session.train_questions:
            raise UserError("task.num_train: no training questions; at least one is needed.")
        # Round 0 draws from the base, a later one from what the round before has trained.
        adapters = policies_after(session, round - 1)
        for block in journal.blocks(session.train_questions, config.search.block, shard):
            forest = malt.search(
                session.model,
                block.items,
                session.pipeline,
                task=session.task,
                adapters=adapters,
                seed=config.seed,
                round=round,
                backup=config.search.backup,
                softness=config.search.softness,
                threshold=config.search.threshold,
                sampler=session.sampler,
                overflow=config.pipeline.overflow,
                spare=config.search.spare,
                on_level=say,
            )
            (path,) = block.missing  # a search block writes one file
            block.append(path, (tree.to_record() for tree in forest.trees))
            # For the progress line only: a mean over the blocks of this process.
            rewards.append(float(np.nanmean(forest.rewards)))
            block.figures["leaves_right"] = f"{sum(rewards) / len(rewards):.1%}"


def _prefix(session: Session) -> str:
    """File names of a slice begin with its range, so that joined slices cannot collide."""
    shard = session.config.search.shard
    return "" if shard == "1/1" else f"{shard.replace('/', 'of')}-"
