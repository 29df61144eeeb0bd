"""A trained run's chain of roles as an object that answers questions.

Pipeline.load("runs/gsm8k").ask("How many legs do three cats have?").text
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from malt_jax import config
from malt_jax.errors import UserError
from malt_jax.evaluation.statistics import majority_vote
from malt_jax.progress import Progress
from malt_jax.sampling.request import Request
from malt_jax.stages.names import trained_stage
from malt_jax.stages.policies import policies_after
from malt_jax.stages.session import Session
from malt_jax.stages.trust import check_trust
from malt_jax.storage.manifest import stage_done
from malt_jax.storage.rundir import RunDir
from malt_jax.tree.expand import completion_text, sampling_params
from malt_jax.tree.keys import node_key
from malt_jax.tree.prompts import render
from malt_jax.tree.roles import Role

OnText = Callable[[int, str, str], None]
"""Called with (draw, role, new text) while a turn is written. A turn begins with an empty text."""


@dataclass(frozen=True)
class Turn:
    """What one role said."""

    role: str
    text: str
    tokens: int
    finish: str
    """`eos`, `stop` or `length`."""
    answer: str | None
    """The answer read from it; None where there is none or the role does not answer."""


@dataclass(frozen=True)
class Answer:
    """Independent draws of the pipeline on one question, and their majority vote."""

    draws: tuple[tuple[Turn, ...], ...]
    votes: tuple[str | None, ...]
    """Each draw's prediction."""
    winner: int
    """The earliest draw whose prediction won."""

    @property
    def turns(self) -> tuple[Turn, ...]:
        """The winning draw's turns."""
        return self.draws[self.winner]

    @property
    def text(self) -> str:
        """The winning draw's last turn."""
        return self.turns[-1].text

    @property
    def prediction(self) -> str | None:
        return self.votes[self.winner]


class Pipeline:
    """The roles of a run with the weights they ended training with."""

    def __init__(self, session: Session):
        self._session = session
        # Each question asks every role in turn, so weights that were dropped would be loaded again.
        self._policies = policies_after(session, session.config.rounds - 1, keep_all=True)

    @classmethod
    def load(cls, run: str | os.PathLike, *, trust_task_code: bool = False) -> Pipeline:
        """The pipeline of a run whose training is finished; reads the run, writes nothing.

        A run that somebody else made may name a Python module as its task, which is imported only
        with `trust_task_code`.
        """
        directory = RunDir.existing(run)
        made_with = config.from_dict(directory.config)
        # Before a session could import the module that the run's config names as its task.
        check_trust(made_with, directory.path, trust_task_code, {})
        needed = trained_stage(made_with.rounds - 1)
        if not stage_done(directory, needed):
            raise UserError(
                f"{directory.path}: not trained yet ({needed} is not finished); finish it with "
                f"`malt run --output-dir {directory.path}`."
            )
        return cls(Session(made_with, directory, Progress(quiet=True)))

    @property
    def trained_on(self) -> str:
        """The task, in a line: an answer to anything else means little."""
        task = self._session.task
        return f"{task.name}, {task.description}"

    def unread(self, question: str) -> list[str]:
        """Characters of the question that the model cannot distinguish; it answers all the same."""
        return self._session.model.tokenizer.unread(question)

    def ask(
        self, question: str, votes: int = 3, seed: int | None = None, on_text: OnText | None = None
    ) -> Answer:
        """Runs the chain `votes` times, one draw after the other, and takes the vote.

        The same question, seed (default: the run's) and draw give the same text every time.
        """
        if votes < 1:
            raise UserError(f"votes: found {votes}, allowed: 1 or more.")
        if not question.strip():
            raise UserError("the question is empty; write one.")
        seed = self._session.config.seed if seed is None else seed
        draws = tuple(self._draw(question, seed, draw, on_text) for draw in range(votes))
        predictions = tuple(_prediction(turns) for turns in draws)
        return Answer(draws, predictions, majority_vote(predictions).draw)

    def _draw(
        self, question: str, seed: int, draw: int, on_text: OnText | None
    ) -> tuple[Turn, ...]:
        turns: list[Turn] = []
        for role in self._session.pipeline.roles:
            on_turn_text = partial(on_text, draw, role.name) if on_text else None
            # `ask` keeps these draws apart from those of search and evaluation with this seed.
            key = node_key(seed, "ask", question, draw, len(turns))
            turns.append(self._turn(role, question, turns, key, on_turn_text))
        return tuple(turns)

    def _turn(
        self,
        role: Role,
        question: str,
        said: Sequence[Turn],
        key: Any,
        on_text: Callable[[str], None] | None,
    ) -> Turn:
        session = self._session
        tokenizer = session.model.tokenizer
        prompt = render(
            role.template,
            question,
            {turn.role: turn.text for turn in said},
            tokenizer,
            room=session.model.spec.context - role.config.max_new_tokens,
            overflow=session.config.pipeline.overflow,
            where=f"the question, {role.name}",
        )
        stream = _Stream(tokenizer, on_text) if on_text else None
        [[completion]] = session.sampler.sample(
            [Request(prompt.ids, key[None])],
            sampling_params(role, tokenizer.end_ids),
            adapter=self._policies[role.name],
            on_tokens=(lambda _request, _completion, new: stream.add(new)) if stream else None,
        )
        text = completion_text(completion, tokenizer.end_ids, tokenizer)
        if stream:
            stream.finish(text)
        answer = session.task.grader.extract(text) if role.config.answers else None
        return Turn(role.name, text, len(completion.tokens), completion.finish, answer)


def _prediction(turns: Sequence[Turn]) -> str | None:
    """The answer read from the last turn; the last role always answers."""
    return turns[-1].answer


class _Stream:
    """Tokens in, text out as soon as it is certain: never half of a character."""

    def __init__(self, tokenizer: Any, on_text: Callable[[str], None]):
        self._tokenizer, self._on_text = tokenizer, on_text
        self._ids: list[int] = []
        self._sent = ""
        on_text("")

    def add(self, tokens: Sequence[int]) -> None:
        self._ids += [token for token in map(int, tokens) if token not in self._tokenizer.end_ids]
        # All ids are decoded again, because a token may hold only a part of a character. U+FFFD at
        # the end stands for bytes whose rest has not come yet.
        self._send(self._tokenizer.decode(self._ids).rstrip("\ufffd"))

    def finish(self, text: str) -> None:
        """The whole text is known."""
        self._send(text)

    def _send(self, text: str) -> None:
        # The tokenizer may still change the last characters; only what extends `_sent` is sent.
        if len(text) > len(self._sent) and text.startswith(self._sent):
            self._on_text(text[len(self._sent) :])
            self._sent = text
