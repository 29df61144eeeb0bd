"""Tasks: questions, a grader, and one prompt template per role.

Everything here is plain data. A `Task` is built once and never changed. To make your own, see
`malt_jax.tasks.custom`.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, cast, runtime_checkable


@dataclass(frozen=True)
class Question:
    """One question with its reference answer.

    `id` is unique in its file and becomes the root of node paths (`Q17/g0/v2`), so it holds no
    slash. `meta` carries what a task needs beside the text: level, subject, choices, tests.
    """

    id: str
    text: str
    answer: str
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Grade:
    """The answer read out of one text (None when there is none) and whether it is right.

    `parsed` is canonical, so that equal answers vote together: `1,200.0` and `1200` are `1200`.
    `reward` is a number from 0 to 1, by default 1 for a correct answer and 0 for any other; a
    grader may give partial rewards, and so may a function (`tasks.rewards.Rewarded`).
    """

    parsed: str | None
    correct: bool
    # None lasts only until `__post_init__`, so that users of the class see a plain float.
    reward: float = cast(float, None)

    def __post_init__(self):
        if self.reward is None:
            # A frozen dataclass refuses assignment, also from its own methods.
            object.__setattr__(self, "reward", float(self.correct))
        if not 0 <= self.reward <= 1:
            raise ValueError(f"a reward of {self.reward}; it must be from 0 to 1")


NO_ANSWER = Grade(None, correct=False)
"""The grade of a completion that has nothing to grade: it never came to its answer."""


@runtime_checkable
class Grader(Protocol):
    """Reads final answers out of model text: the extractor T and the reward 1[T(r) = a*]."""

    def extract(self, text: str) -> str | None:
        """The final answer stated in `text`, canonical; None if there is none, or no clear one."""

    def grade(self, texts: Sequence[str], questions: Sequence[Question]) -> list[Grade]:
        """Grades `texts[i]` as an answer to `questions[i]`; the two have the same length."""


def read_answer(grader: Grader, text: str, question: Question) -> str | None:
    """What the grader reads in a text, with the question where its `extract` takes one."""
    takes = len(inspect.signature(grader.extract).parameters) > 1
    return grader.extract(text, question) if takes else grader.extract(text)  # type: ignore[call-arg]


class ComparingGrader:
    """A grader whose `extract` gives the answer; right if that is `reference`."""

    def extract(self, text: str, question: Question | None = None) -> str | None:
        """The final answer stated in `text`, canonical; see `Grader`."""
        raise NotImplementedError

    def reference(self, question: Question) -> str:
        """The reference answer, canonical."""
        return question.answer

    def grade(self, texts: Sequence[str], questions: Sequence[Question]) -> list[Grade]:
        grades = []
        for text, question in zip(texts, questions, strict=True):
            parsed = self.extract(text, question)
            correct = parsed is not None and parsed == self.reference(question)
            grades.append(Grade(parsed, correct))
        return grades


@runtime_checkable
class Loader(Protocol):
    """Gives the questions of one split."""

    def __call__(
        self,
        split: str,
        path: str | None = None,
        limit: int | None = None,
        seed: int | None = None,
    ) -> list[Question]: ...


@dataclass(frozen=True)
class Task:
    """A set of questions, how they are asked and how answers are graded.

    name:          what `task.name` in the config says.
    description:   one line for people.
    load:          `load(split, path=None, limit=None, seed=None)`; see `malt_jax.tasks.loading`.
    grader:        see `malt_jax.tasks.graders`.
    templates:     prompt by role. Placeholders: `{question}` and `{<role>}` for an earlier turn.
                   `generator`, `verifier` and `refiner` are always there; `retry` (an agent that
                   looks at its own answer, `{generator}`) and `debate` (an agent that looks at the
                   others', `{others}`) may be.
    answer_format: how a final answer is to be written, for prompts and people.
    splits:        the split names that `load` accepts.
    """

    name: str
    description: str
    load: Loader
    grader: Grader
    templates: Mapping[str, str]
    answer_format: str
    splits: tuple[str, ...] = ("train", "eval")
