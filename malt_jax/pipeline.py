"""A trained run's chain of roles as an object that answers questions.

Pipeline.load("runs/gsm8k").ask("How many legs do three cats have?").text
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any

from malt_jax.answering.turns import Answer, Answerer, Draw, Turn, answer
from malt_jax.errors import UserError
from malt_jax.hashing import fingerprint
from malt_jax.progress import Progress
from malt_jax.stages.evaluations import trained_run, trained_with
from malt_jax.stages.names import search_stage
from malt_jax.stages.policies import policies_after
from malt_jax.stages.session import Session
from malt_jax.storage.jsonl import read_lines
from malt_jax.storage.manifest import sealed_units
from malt_jax.tree.node import Tree

if TYPE_CHECKING:
    from malt_jax.config.model import ModelConfig
    from malt_jax.sampling.sampler import Sampler

__all__ = ["Answer", "OnText", "Pipeline", "Turn"]

OnText = Callable[[int, str, str], None]
"""Called with (draw, role, new text) while turns are written. A turn begins with an empty text.
The draws are written side by side, so that their texts alternate."""


class Pipeline:
    """The roles of a run with the weights they ended training with."""

    def __init__(self, session: Session):
        self._session = session

    @classmethod
    def load(
        cls,
        run: str | os.PathLike,
        *,
        trust_task_code: bool = False,
        progress: Progress | None = None,
    ) -> Pipeline:
        """The pipeline of a run whose training is finished; reads the run, writes nothing.

        A run that somebody else made may name a Python module as its task, which is imported only
        with `trust_task_code`.
        """
        config, directory = trained_run(run, trust_task_code)
        return cls(Session(config, directory, progress or Progress(quiet=True)))

    @property
    def trained_on(self) -> str:
        """The task, in a line: an answer to anything else means little."""
        task = self._session.task
        return f"{task.name}, {task.description}"

    @cached_property
    def answerer(self) -> Answerer:
        """The chain over the run's samplers."""
        return self._over(self._session.bases.sampler)

    def answerer_with(self, on_chunk: Callable[[], None]) -> Answerer:
        """The chain over samplers of its own, which call `on_chunk` between decode chunks.

        What `on_chunk` raises ends the call.
        """
        bases = self._session.bases
        return self._over(lambda base: bases.make_sampler(bases.model(base), on_chunk))

    def _over(self, sampler: Callable[[ModelConfig], Sampler]) -> Answerer:
        session = self._session
        # All at once: a server's threads, which ask for them later, must not load models.
        samplers = {base: sampler(base) for base in session.config.bases}
        # Each question asks every role in turn, so weights that were dropped would be loaded again.
        policies = policies_after(session, session.config.rounds - 1, keep_all=True)
        return Answerer(
            {role: samplers[session.config.model_of(role)] for role in policies},
            session.pipeline,
            policies,
            session.task.grader,
            session.config.pipeline.overflow,
        )

    @property
    def seed(self) -> int:
        """The run's seed, the default of every question's."""
        return self._session.config.seed

    @property
    def block(self) -> int:
        """The questions that the run searches together, and that `ask_many` answers together."""
        return self._session.config.search.block

    def unread(self, question: str) -> list[str]:
        """Characters of the question that a model cannot distinguish; it answers all the same."""
        return self.answerer.unread(question.strip())

    def prompt_tokens(self) -> dict[str, int]:
        """Each role's longest prompt for one question of the run, from its first tree."""
        units = sealed_units(self._session.run, search_stage(0))
        shard = next(path for path in units if path.suffix == ".jsonl")
        tree = Tree.from_record(next(read_lines(shard)))
        return {
            role: max(len(node.prompt_ids) for node in tree.nodes if node.role == role)
            for role in tree.roles
        }

    def meter(self) -> Callable[[], dict[str, Any]]:
        """Starts a measurement of the sampler, shown by the progress."""
        return self._session.meter()

    def made_with(self, votes: int, seed: int | None) -> str:
        """A hash of all that answers depend on: weights, config, votes and seed."""
        config_and_weights = trained_with(self._session)
        data = [config_and_weights, votes, self.seed if seed is None else seed]
        return fingerprint(data=data)[:16]

    def ask(
        self, question: str, votes: int = 3, seed: int | None = None, on_text: OnText | None = None
    ) -> Answer:
        """Runs the chain `votes` times, all draws side by side, and takes the vote.

        The same question, seed (default: the run's) and draw give the same text every time. White
        space around a question is left out.
        """
        draws = self._draws(question, votes, seed)
        self.answerer.ask(draws, on_text)
        for draw in draws:
            if draw.error:
                raise draw.error
        return answer(draws)

    def ask_many(
        self,
        questions: Iterable[str],
        votes: int = 3,
        seed: int | None = None,
        block: int | None = None,
    ) -> Iterator[Answer]:
        """Yields the answer to each question in order, `block` questions at a time.

        Memory does not grow with their number. A question that leaves one of its prompts no room
        has an `error` in its answer and no text; an empty one raises UserError before its block is
        asked. `check` says beforehand whether a question can be asked.
        """
        questions = iter(questions)
        while some := list(itertools.islice(questions, block or self.block)):
            asked = [self._draws(question, votes, seed) for question in some]
            self.answerer.ask([draw for draws in asked for draw in draws], None)
            yield from map(answer, asked)

    def check(self, question: str) -> None:
        """Raises UserError for a question that cannot be asked."""
        self.answerer.check(question.strip())

    def _draws(self, question: str, votes: int, seed: int | None) -> list[Draw]:
        if votes < 1:
            raise UserError(f"votes: found {votes}, allowed: 1 or more.")
        # One rule wherever a question comes from: what is around it is no part of it.
        question = question.strip()
        if not question:
            raise UserError("the question is empty; write one.")
        seed = self.seed if seed is None else seed
        return [Draw(question, number, seed) for number in range(votes)]
