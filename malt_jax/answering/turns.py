"""One turn of many draws at once: the step that `ask`, bulk answers and the server have in common.

A draw is one pass of the chain over one question. Draws that wait for the same role are sampled in
one call, whatever question or user they come from; equal prompts are prefilled once. The key of a
turn depends on seed, question, draw and turn only, never on what else is in the call.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from malt_jax.errors import UserError
from malt_jax.evaluation.statistics import majority_vote
from malt_jax.sampling.request import Request, SamplingParams
from malt_jax.tasks.base import Question, read_answer
from malt_jax.tasks.parsers import listed_choices
from malt_jax.tree.expand import sampling_params
from malt_jax.tree.keys import node_key
from malt_jax.tree.prompts import Overflow, Prompt, TooLong, render
from malt_jax.tree.roles import Chain, Role
from malt_jax.tree.thoughts import read_completion

if TYPE_CHECKING:
    from malt_jax.models.thoughts import AnyThoughts
    from malt_jax.sampling.sampler import Sampler
    from malt_jax.tasks.base import Grader

OnDrawText = Callable[[int, str], None]
"""Called with (index of the draw, new text) while turns are written; a turn begins with ''."""


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
    thought: str | None = None
    """What a thinking model wrote before the text, with the tokens around it."""
    unclosed: bool = False
    """The completion ended within its thought, so that its text is empty and no answer."""

    def to_record(self) -> dict[str, Any]:
        """The turn as a JSON object; only thinkers have a `thought`."""
        record = dict(vars(self))
        if self.thought is None:
            del record["thought"], record["unclosed"]
        return record


@dataclass(frozen=True)
class Answer:
    """Independent draws of the chain on one question, and their majority vote."""

    draws: tuple[tuple[Turn, ...], ...]
    votes: tuple[str | None, ...]
    """Each draw's prediction."""
    winner: int
    """The earliest draw whose prediction won."""
    error: str | None = None
    """Why a turn could not be asked, because its prompt left no room; then no draw counts."""

    @property
    def turns(self) -> tuple[Turn, ...]:
        """The winning draw's turns."""
        return self.draws[self.winner]

    @property
    def text(self) -> str | None:
        """The winning draw's last turn; None where there is an `error`."""
        return None if self.error else self.turns[-1].text

    @property
    def prediction(self) -> str | None:
        return self.votes[self.winner]

    @property
    def tie(self) -> bool:
        """Several answers have the most votes, and the first drawn of them counts."""
        return majority_vote(self.votes).tie


class GraderFailed(UserError):
    """A grader of the user's own raised an error while it read a turn."""


@dataclass
class Draw:
    """One pass of the chain over one question, and how far it is."""

    question: str
    number: int
    seed: int
    turns: list[Turn] = field(default_factory=list)
    prompt_tokens: int = 0
    error: UserError | None = None
    """Why it takes no further turns: the next one leaves no room, or its answer is not read."""


def answer(draws: Sequence[Draw]) -> Answer:
    """The answer that the finished draws of one question vote for."""
    if failed := next((draw.error for draw in draws if draw.error), None):
        return Answer(tuple(tuple(d.turns) for d in draws), (None,) * len(draws), 0, str(failed))
    # The last role always answers, so the last turn has the prediction.
    predictions = tuple(draw.turns[-1].answer for draw in draws)
    turns = tuple(tuple(draw.turns) for draw in draws)
    return Answer(turns, predictions, majority_vote(predictions).draw)


@dataclass(frozen=True)
class Answerer:
    """A chain with its policies, ready to take turns. Not thread-safe: one thread owns it."""

    samplers: Mapping[str, Sampler]
    """Each role's by name; roles of one model share theirs."""
    chain: Chain
    policies: Mapping[str, Any]
    """Each role's weights by name; None is the base model."""
    grader: Grader
    overflow: Overflow = "refuse"

    def sampler(self, role: Role) -> Sampler:
        return self.samplers[role.name]

    def tokenizer(self, role: Role) -> Any:
        """That of the role's model, with its chat settings."""
        return role.tokenizer(self.sampler(role).model.tokenizer)

    def params(self, role: Role) -> SamplingParams:
        """How a role samples unless a request says otherwise."""
        return sampling_params(role, self.tokenizer(role))

    def check(
        self,
        question: str,
        params: Mapping[str, SamplingParams] | None = None,
        said: Sequence[Turn] = (),
    ) -> None:
        """Raises UserError for a question that leaves some role no room, whatever it will be told.

        `params`: the roles that are asked, by name, and how they sample; default: all of them.
        `said`: the turns that are known already. Any thread may call it.
        """
        if not question.strip():
            raise UserError("the question is empty; write one.")
        told = self._passed_on(said)
        known: dict[str, str] = {}
        for role in self.chain.roles:
            if params is None or role.name in params:
                own = self.params(role) if params is None else params[role.name]
                self._prompt(role, own, question, known)
            known[role.name] = told.get(role.name, "")  # what is not told yet may be empty

    def unread(self, question: str, roles: Sequence[Role] | None = None) -> list[str]:
        """Characters of the question that a model cannot tell apart; it answers all the same.

        `roles`: those whose models are asked; default: all. Any thread may call it.
        """
        models = {id(m): m for m in (self.sampler(r).model for r in roles or self.chain.roles)}
        found = [c for model in models.values() for c in model.tokenizer.unread(question)]
        return list(dict.fromkeys(found))

    def warm_up(self, prompt_tokens: Mapping[str, int]) -> None:
        """Compiles what every role needs for prompts of so many tokens, in any batch of draws."""
        for role in self.chain.roles:
            self.sampler(role).warm_up(
                prompt_tokens[role.name],
                role.config.max_new_tokens,
                thought=self.params(role).thought,
                adapter=self.policies[role.name],
            )

    def ask(self, draws: Sequence[Draw], on_text: Callable[[int, str, str], None] | None) -> None:
        """Takes every turn of the chain; `on_text` is called with (draw, role, new text)."""
        for role in self.chain.roles:
            waiting = [draw for draw in draws if not draw.error]

            def heard(index: int, text: str, role=role, waiting=waiting) -> None:
                assert on_text
                on_text(waiting[index].number, role.name, text)

            self.take_turn(role, waiting, self.params(role), on_text and heard)

    def take_turn(
        self,
        role: Role,
        draws: Sequence[Draw],
        params: SamplingParams,
        on_text: OnDrawText | None = None,
    ) -> None:
        """Samples the role's turn of every draw in one call and adds it to each.

        A draw whose prompt leaves no room gets an `error` instead of the turn.
        """
        # 1. Prompts; draws with the same one are siblings of one request.
        groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
        # Draws of one question often have said the same, at first nothing: rendered once for all.
        rendered: dict[tuple[str, tuple[tuple[str, str], ...]], Prompt | UserError] = {}
        for index, draw in enumerate(draws):
            said = tuple(self._passed_on(draw.turns).items())
            known = draw.question, said
            if known not in rendered:
                try:
                    rendered[known] = self._prompt(role, params, draw.question, dict(said))
                except UserError as error:
                    rendered[known] = error
            prompt = rendered[known]
            if isinstance(prompt, UserError):
                draw.error = prompt
                continue
            draw.prompt_tokens += len(prompt.ids)
            groups[prompt.ids].append(index)
        members = list(groups.values())
        # 2. Keys. `ask` keeps these draws apart from those of search and evaluation with the seed.
        requests = [
            Request(
                ids,
                np.stack(
                    [
                        node_key(d.seed, "ask", d.question, d.number, len(d.turns))
                        for d in (draws[index] for index in group)
                    ]
                ),
            )
            for ids, group in groups.items()
        ]
        if not requests:
            return
        # 3. One call of the sampler, with text passed on while it is written.
        sampler, tokenizer = self.sampler(role), self.tokenizer(role)
        form = tokenizer.thoughts
        streams: dict[int, TextStream] = {}
        if on_text:
            for index in (i for group in members for i in group):
                streams[index] = TextStream(tokenizer, form, index, on_text)
        drawn = sampler.sample(
            requests,
            params,
            adapter=self.policies[role.name],
            on_tokens=(lambda r, c, new: streams[members[r][c]].add(new)) if streams else None,
        )
        # 4. The turns.
        for group, completions in zip(members, drawn, strict=True):
            for index, completion in zip(group, completions, strict=True):
                tokens, finish = completion.tokens, completion.finish
                spoken = read_completion(tokens, finish, tokenizer, form)
                if index in streams:
                    streams[index].finish(spoken.text)
                answers = role.config.answers and not spoken.unclosed
                read = self._read(draws[index], spoken.text) if answers else None
                draws[index].turns.append(
                    Turn(
                        role.name,
                        spoken.text,
                        len(tokens),
                        finish,
                        read,
                        spoken.thought,
                        spoken.unclosed,
                    )
                )

    def _read(self, draw: Draw, text: str) -> str | None:
        """The answer in a turn; a grader of the user's own that fails ends this draw alone."""
        asked = Question("", draw.question, "", listed_choices(draw.question))
        try:
            return read_answer(self.grader, text, asked)
        except UserError as error:
            draw.error = GraderFailed(str(error))
            return None

    def _passed_on(self, turns: Sequence[Turn]) -> dict[str, str]:
        """What the next role reads of each turn, by role."""
        roles = {role.name: role for role in self.chain.roles}
        return {turn.role: roles[turn.role].passed_on(turn.text, turn.thought) for turn in turns}

    def _prompt(
        self, role: Role, params: SamplingParams, question: str, said: Mapping[str, str]
    ) -> Prompt:
        try:
            return render(
                role.template,
                question,
                said,
                self.tokenizer(role),
                room=self.sampler(role).spec.context - params.max_new_tokens,
                overflow=self.overflow,
                where=f"the question, {role.name}",
            )
        except TooLong as error:
            raise TooLong(error.finding, "shorten the question") from None


class TextStream:
    """Tokens in, text out as soon as it is certain: never half of a character, and no thought."""

    def __init__(self, tokenizer: Any, form: AnyThoughts | None, index: int, on_text: OnDrawText):
        self._tokenizer, self._form = tokenizer, form
        self._index, self._on_text = index, on_text
        self._ids: list[int] = []
        self._sent = ""
        on_text(index, "")

    def add(self, tokens: Sequence[int]) -> None:
        self._ids += [token for token in map(int, tokens) if token not in self._tokenizer.end_ids]
        if self._form and self._form.answer_start(self._ids) is None:
            return
        # All ids are decoded again, because a token may hold only a part of a character. U+FFFD at
        # the end stands for bytes whose rest has not come yet.
        said = read_completion(self._ids, "", self._tokenizer, self._form)
        self._send(said.text.rstrip("\ufffd"))

    def finish(self, text: str) -> None:
        """The whole text is known."""
        self._send(text)

    def _send(self, text: str) -> None:
        # The tokenizer may still change the last characters; only what extends `_sent` is sent.
        if len(text) > len(self._sent) and text.startswith(self._sent):
            self._on_text(self._index, text[len(self._sent) :])
            self._sent = text
