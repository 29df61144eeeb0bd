"""The choice grader: one label, and none where the text names two or denies one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from malt_jax.tasks.base import Question
from malt_jax.tasks.graders.choice import ChoiceGrader

CHOICES = {"A": "ignore", "B": "enforce", "C": "not obey or follow", "D": "yell at", "E": "a"}
LETTERS = Question("q", "", "B", {"choices": CHOICES})
YES_NO = ChoiceGrader(choices={"yes": "", "no": ""}, aliases={"true": "yes", "false": "no"})

SAYS_B = [
    "The answer is (B)",
    "The answer is (B).",
    "The answer is B.",
    "The answer is B",
    "the answer is (b)",
    "the answer is b.",
    "The answer is: B",
    "The answer is **B**.",
    "The answer is (B) enforce.",
    "The answer is B) enforce",
    "The answer is B: enforce",
    "The answer is B. enforce",
    "The answer is B, enforce.",
    "The answer is option B.",
    "The answer is choice (B).",
    "The answer is enforce.",
    'The answer is "enforce".',
    "The answer is ENFORCE.",
    "The correct answer is (B), because schools are punished.",
    "The answer is B because schools are punished.",
    "Answer: B",
    "**Answer: (B)**",
    "Answer:\nB",
    "Final answer: B) enforce",
    "Therefore, the final answer is $\\boxed{B}$.",
    r"\boxed{B}",
    r"\boxed{\text{B}}",
    r"\boxed{(B)}",
    r"\boxed{\textbf{(B)}}",
    r"\boxed{enforce}",
    "#### B",
    "#### (B)",
    "#### B) enforce",
    "The answer is (A). Wait, no.\nThe answer is (B).",
    "The answer is (A). The answer is (B).",
    "#### A\n#### B",
    "Reasons.\nB",
    "Reasons.\n(B)",
    "Reasons.\n**B**",
    "Reasons.\nB) enforce",
    "Reasons.\n(B) enforce",
    "Reasons.\nB.",
    "(A) is weak.\nThe answer is (B).",
    "The answer is (B).\n",
    "The answer is (B)!",
    "The answer is (B). The answer is correct.",
    "The answer is letter B.",
    "The answer is {B}.",
    "The answer is [B].",
    "The answer to the question is (B).",
    "Our answer is B.",
    "enforce",
]

NOT_B = [
    "The answer is (A).",
    "The answer is (C) not obey or follow.",
    "The answer is (A) enforce.",
    "The answer is (B) ignore.",
    "The answer is (B) or (C).",
    "The answer is B or C.",
    "The answer is (A) or (B).",
    "The answer is B and C.",
    "The answer is (B) and (C).",
    "The answer is B, C.",
    "The answer is B/C.",
    "The answer is (B)(C).",
    "The answer is both A and B.",
    "The answer is either (B) or (D).",
    "The answer is not (B).",
    "The answer is not B.",
    "The answer isn't B.",
    "The answer is none of them, not even B.",
    "The answer is neither (A) nor (B).",
    "The answer is B is wrong.",
    "The answer is (F).",
    "The answer is Z.",
    "The answer is ABCDE.",
    "The answer is A B C D E.",
    "The answer is (A)(B)(C)(D)(E).",
    "The answer is BB.",
    "The answer is Bob.",
    "The answer is a bookstore.",
    "The answer is a.",
    "The answer is B.\nThe answer is A.",
    "#### B\n#### A",
    r"\boxed{A}",
    r"\boxed{B} or \boxed{C}",
    r"\boxed{B}, \boxed{C}",
    r"\boxed{}",
    r"\boxed{B} no \boxed{A}",
    "The answer is (B). No: the answer is (D).",
    "The answer is enforce or ignore.",
    "The answer is not enforce.",
    "The answer is unclear.",
    "",
    "   ",
    "I can't say.",
    "B was my first idea, yet it fails.",
    "A",
    "Reasons.\n(A) or (B)",
    "Reasons.\nA, B",
    "Both B and C fit.",
    "(B) is tempting.\n(D)",
    "The answer is 2.",
    "The answer is (1).",
    "The answer is the second.",
    "B" * 10_000,
]

SAYS_YES = [
    "The answer is yes.",
    "The answer is Yes",
    "The answer is **yes**.",
    "Answer: YES",
    "The answer is true.",
    "The answer is no. Wait.\nThe answer is yes.",
    "Reasons.\nYes",
    "Reasons.\nYes.",
    "#### yes",
    r"\boxed{yes}",
    r"\boxed{\text{Yes}}",
    "The answer is yes, because birds fly.",
]
NOT_YES = [
    "The answer is no.",
    "The answer is not yes.",
    "The answer is yes or no.",
    "The answer is yes and no.",
    "The answer is yes/no.",
    "The answer is both yes and no.",
    "The answer is false.",
    "The answer is maybe.",
    "The answer is yesterday.",
    "The answer is neither yes nor no.",
    "Yes, it seems, but\nno",
    "yes\nno",
    "",
]


def says(text: str, grader: ChoiceGrader, question: Question) -> bool:
    return grader.grade([text], [question])[0].correct


@pytest.mark.parametrize("text", SAYS_B)
def test_the_chosen_label_is_read(text):
    assert says(text, ChoiceGrader(), LETTERS)


@pytest.mark.parametrize("text", NOT_B)
def test_another_label_two_labels_or_none_fail(text):
    assert not says(text, ChoiceGrader(), LETTERS)


@pytest.mark.parametrize("text", SAYS_YES)
def test_yes_is_read(text):
    assert says(text, YES_NO, Question("q", "", "yes"))


@pytest.mark.parametrize("text", NOT_YES)
def test_not_yes_fails(text):
    assert not says(text, YES_NO, Question("q", "", "yes"))


def test_no_text_is_right_for_two_different_references():
    questions = [Question("q", "", label, {"choices": CHOICES}) for label in CHOICES]
    for text in SAYS_B + NOT_B:
        assert sum(says(text, ChoiceGrader(), q) for q in questions) <= 1, text


def test_a_text_that_two_choices_share_decides_nothing_alone():
    question = Question("q", "", "A", {"choices": {"A": "home", "B": "barn", "C": "home"}})
    assert says("The answer is (A) home.", ChoiceGrader(), question)
    assert not says("The answer is (C) home.", ChoiceGrader(), question)
    assert not says("The answer is home.", ChoiceGrader(), question)


def test_the_tables_are_large_enough():
    assert len(SAYS_B) + len(NOT_B) >= 100


@given(st.text(max_size=200))
def test_any_text_is_graded(text):
    assert ChoiceGrader().extract(text, LETTERS) in {None, *CHOICES}
