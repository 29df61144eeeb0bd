"""Search: every training question becomes a valued tree (docs/method.md, sections 2 and 3)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

import malt_jax as malt
from malt_jax.errors import UserError
from malt_jax.progress import counted
from malt_jax.stages.names import search_stage
from malt_jax.stages.policies import policies_after
from malt_jax.stages.session import Session
from malt_jax.tasks.base import Question

if TYPE_CHECKING:
    from malt_jax.tree.node import Forest, Tree


def search(session: Session, round: int) -> None:
    """Searches the training questions of a round, one shard file per block of questions."""
    config, stage = session.config, search_stage(round)
    right: list[float] = []

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
        grow: Callable[[Sequence[Question]], Forest] = partial(
            grown, session, adapters, round, spare=config.search.spare, on_level=say
        )
        if config.search.streaming:
            grow = _streamed(session, adapters, round, say)
        for block in journal.blocks(session.train_questions, config.search.block, shard):
            forest = grow(block.items)
            (path,) = block.missing  # a search block writes one file
            block.append(path, (tree.to_record() for tree in forest.trees))
            # For the progress line only: a mean over the blocks of this process.
            right.append(mean(_share_right(tree) for tree in forest.trees))
            block.figures["leaves_right"] = f"{mean(right):.1%}"


def _share_right(tree: Tree) -> float:
    """The share of a tree's leaves that are right, whatever their rewards are."""
    return tree.mean(tree.leaves, [float(bool(leaf.correct)) for leaf in tree.leaves])


def grown(
    session: Session,
    adapters: Any,
    round: int | str,
    questions: Sequence[Question],
    spare: int = 0,
    on_level: Callable[[str, int], None] = lambda role, completions: None,
) -> Forest:
    """The valued trees of these questions as the run's config says, drawn with these adapters."""
    config = session.config
    return malt.search(
        session.bases.each(session.bases.model_of),
        questions,
        session.pipeline,
        task=session.task,
        adapters=adapters,
        seed=config.seed,
        round=round,
        backup=config.search.backup,
        softness=config.search.softness,
        threshold=config.search.threshold,
        sampler=session.bases.each(session.bases.sampler_of),
        overflow=config.pipeline.overflow,
        spare=spare,
        on_level=on_level,
    )


def _streamed(
    session: Session, adapters: Any, round: int, say: Callable[[str, int], None]
) -> Callable[[Sequence[Question]], Forest]:
    """What gives the trees of one block after the other, sampled without waiting in between."""
    from malt_jax.tree.grading import grade
    from malt_jax.tree.streaming import expand_blocks

    forests: Iterator[Forest] | None = None

    def grow(block: Sequence[Question]) -> Forest:
        nonlocal forests
        if forests is None:
            left = _blocks_from(session, block)
            say("all roles", session.pipeline.calls * sum(map(len, left)))
            forests = expand_blocks(
                session.model,
                session.sampler,
                left,
                session.pipeline,
                adapters=adapters,
                seed=session.config.seed,
                round=round,
                overflow=session.config.pipeline.overflow,
            )
        # Blocks are sealed in order, so those that are left are nearly always all to be made. One
        # that is there already is sampled with them and passed over.
        forest = next(one for one in forests if one.trees[0].question_id == block[0].id)
        return session.valued(grade(forest, block, session.task.grader))

    return grow


def _blocks_from(session: Session, items: Sequence[Question]) -> list[Sequence[Question]]:
    """This block of questions and those after it."""
    questions, size = session.train_questions, session.config.search.block
    start = next(i for i, question in enumerate(questions) if question is items[0])
    return [questions[first : first + size] for first in range(start, len(questions), size)]


def _prefix(session: Session) -> str:
    """File names of a slice begin with its range, so that joined slices cannot collide."""
    shard = session.config.search.shard
    return "" if shard == "1/1" else f"{shard.replace('/', 'of')}-"
