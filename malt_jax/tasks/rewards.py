"""Rewards from a function of the user's, such as a reward model, in place of right or wrong."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from malt_jax.checks import show
from malt_jax.errors import UserError
from malt_jax.tasks.base import Grade, Grader, Question, read_answer

Reward = Callable[[Question, str, str | None], float]
"""(question, completion, the answer that the grader reads in it, or None) -> a number in [0, 1]."""


@dataclass(frozen=True)
class Rewarded:
    """A grader whose rewards come from a function, and everything else from another grader.

    `replace(task, grader=Rewarded(task.grader, reward))` is a task with these rewards. They are
    what the search backs up, for right and wrong answers alike; `grader` still decides which
    answers are right, and so every accuracy. `reward(question, completion, parsed)` is called for
    each text that is graded; `parsed` is None where no answer can be read. UserError if it returns
    anything but a finite number from 0 to 1.
    """

    grader: Grader
    reward: Reward

    def extract(self, text: str, question: Question | None = None) -> str | None:
        """What the grader reads in the text."""
        return read_answer(self.grader, text, question or Question("", "", ""))

    def grade(self, texts: Sequence[str], questions: Sequence[Question]) -> list[Grade]:
        """The grader's grades with the function's rewards."""
        grades = self.grader.grade(texts, questions)
        return [
            replace(grade, reward=self._reward(question, text, grade.parsed))
            for grade, text, question in zip(grades, texts, questions, strict=True)
        ]

    def check(self, question: Question) -> str | None:
        """Why the grader cannot grade a question, if it says so of questions."""
        check = getattr(self.grader, "check", None)
        return check(question) if check else None

    def _reward(self, question: Question, text: str, parsed: str | None) -> float:
        found = self.reward(question, text, parsed)
        try:
            number = float(found)
        except (TypeError, ValueError):
            number = math.nan
        if not 0 <= number <= 1:  # nor is NaN
            raise UserError(
                f"reward: the function returned {show(found)} for an answer to question "
                f"{question.id!r}; a reward is a finite number from 0 to 1"
            )
        return number
