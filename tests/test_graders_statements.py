r"""Statements: what denies or takes back an answer is read with it, what stands apart is not."""

from __future__ import annotations

import pytest

from malt_jax.tasks.base import Question
from malt_jax.tasks.graders.choice import ChoiceGrader
from malt_jax.tasks.graders.exact import ExactGrader, SetGrader
from malt_jax.tasks.graders.number import NumberGrader
from malt_jax.tasks.graders.statements import boxes, statements

ANSWERS = [  # grader, the answer, another one
    (NumberGrader(), "18", "17"),
    (ChoiceGrader(), "B", "C"),
    (ExactGrader(), "Paris", "London"),
    (SetGrader(), "red, green", "blue"),
    (ChoiceGrader(choices={"yes": "", "no": ""}), "yes", "no"),
]
DENIED = [  # X is the answer, Y another one
    r"The answer is not \boxed{X}.",
    r"The answer is not $\boxed{X}$.",
    r"The answer is Y or \boxed{X}.",
    r"The answer is at least \boxed{X}.",
    r"\boxed{X} is wrong.",
    r"\boxed{X} is not the answer.",
    r"$\boxed{X}$ is not correct.",
    r"\boxed{X} or Y",
    r"\boxed{X} \text{ or } Y",
    r"It can't be \boxed{X}.",
    r"It is not equal to $\boxed{X}$.",
    r"It is less than $\boxed{X}$.",
    r"x = Y or x = \boxed{X}",
    r"I don't think it is \boxed{X}.",
    r"I doubt the answer is \boxed{X}.",
    r"#### not \boxed{X}",
    r"\boxed{X}. That is wrong.",
    "I don't think the answer is X.",
    "I do not believe that the answer is X.",
    "The wrong answer is X.",
    "An incorrect answer is X.",
    "Wrong Answer: X",
    "None of the answers is X.",
    "It is not true that the answer is X.",
    "I doubt the answer is X.",
    "If the answer is X, we have a contradiction.",
    "The answer is X. No, that is wrong.",
    "The answer is X? No.",
    "The answer is X. Or Y.",
    "#### X\nThat is wrong, I don't know.",
    "#### X\nNo.",
    "Answer: X\nWait, no.",
    "The answer is X. This cannot be right.",
    "The answer is X. This is not the correct answer.",
    "The answer is X. That doesn't seem right.",
    "The answer is X. That doesn't sound right.",
    "The answer is X. This solution is incorrect.",
    "\\boxed{X}\n\nThis solution is incorrect.",
    "\\boxed{X}\n\nLet me try again: Y.",
    "\\boxed{X}\n\nLet's redo this: Y.",
    "The answer is X. I meant Y.",
    r"\boxed{X} (wrong)",
    r"\boxed{X} ❌",
]
STATED = [
    r"The answer is $\boxed{X}$.",
    r"The answer is \boxed{\boxed{X}}.",
    r"#### \boxed{X}",
    r"\boxed{X}, not Y",
    r"That makes this, or $\boxed{X}$, in all.",
    r"We can't use Y, so the answer is \boxed{X}.",
    r"The number of those that do not fit is \boxed{X}.",
    r"\boxed{X} fits, and there are none that do not.",
    "It can't be Y, so the answer is X.",
    "I don't think it is Y, therefore the answer is X.",
    "That was wrong. The answer is X.",
    r"Leaving out those that do not work from the total gives us our answer: $Y-1=\boxed{X}$.",
    "No, the answer is X.",
    "There is no doubt that the answer is X.",
    "It is not hard to see that the answer is X.",
    "The answer is Y. No, the answer is X.",
    r"The answer is not \boxed{Y}. The answer is \boxed{X}.",
    "The answer is X. Nothing else fits.",
    "The answer is X. The answer is correct.",
    "The answer is X. This is the correct answer.",
    "The answer is X. That seems right.",
    "The answer is Y. Let me try again. The answer is X.",
    r"\boxed{X} (correct)",
    "The answer is X.\n\nThe other answers are wrong.",
    "If Y were true, it would not fit.\nThe answer is X.",
    "Those did not fit The answer is X.",  # GSM8K's solutions often lack the full stop
    r"It is more than that \boxed{X}",
    r"Those did not buy coffee \boxed{X}",
]


def graded(grader, form: str, answer: str, other: str) -> bool:
    text = form.replace("X", answer).replace("Y", other)
    return grader.grade([text], [Question("q", "", answer)])[0].correct


@pytest.mark.parametrize("form", DENIED)
def test_a_denied_answer_is_none_for_every_grader(form):
    for grader, answer, other in ANSWERS:
        assert not graded(grader, form, answer, other), answer


@pytest.mark.parametrize("form", STATED)
def test_a_negation_elsewhere_denies_nothing(form):
    for grader, answer, other in ANSWERS:
        assert graded(grader, form, answer, other), answer


def test_a_denied_statement_counts_and_is_empty():
    (last,) = statements(r"The answer is not \boxed{18}.")
    assert (last.form, last.span) == ("box", "")


def test_boxes_are_read_as_they_stand():
    assert [box.span for box in boxes(r"not \boxed{1}, then \boxed{\boxed{2}}")] == ["1", "2"]


@pytest.mark.parametrize(
    ("text", "spans"),
    [
        (r"so $x = \boxed 9$.", ["9"]),
        (r"so $x = \boxed9$, as asked", ["9"]),
        (r"It is not $\boxed 9$.", [""]),
        (r"$\boxed 9^2$", []),
        (r"$\boxed x$", []),
    ],
)
def test_a_box_without_braces_holds_a_number(text, spans):
    assert [statement.span for statement in statements(text)] == spans
