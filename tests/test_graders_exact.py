# ruff: noqa: E501 (tables)
"""The exact and set graders: spelling is forgiven, other words and extra elements are not."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from malt_jax.tasks.base import Question
from malt_jax.tasks.graders.exact import ExactGrader, SetGrader

PARIS = [
    "Answer: Paris", "The answer is Paris.", "the answer is paris", "Answer: PARIS", "#### Paris",
    "Answer: **Paris**", 'Answer: "Paris"', "Answer: 'Paris'", "Answer: “Paris”", "Answer: Paris!",
    r"\boxed{Paris}", r"\boxed{\text{Paris}}", "Answer:   Paris  ", "Answer:\nParis",
    "It is in France.\nParis", "Paris", "paris.", "Answer: `Paris`", "The final answer is Paris",
    "Answer: London\nNo.\nAnswer: Paris", r"\boxed{London} no wait \boxed{Paris}",
    "Answer: London. The answer is Paris.", "#### London\n#### Paris", "Answer: the Paris",
    "**Answer:** Paris", "Answer: Ｐaris", "Answer: Paris\n\n", "Answer = Paris",
    "**The answer is Paris.**", "The answer to the question is Paris.",
]  # fmt: skip
NOT_PARIS = [
    "Answer: London", "Answer: Paris or London", "Answer: London or Paris", "Answer: Paris, London",
    "Answer: Paris and London", "Answer: not Paris", "The answer is not Paris.", "Answer: ?Paris",
    "Answer: Parisian", "Answer: Par is", "Answer: Paris France", "Answer: Paris (or London)",
    "Answer: Paris\nAnswer: London", r"\boxed{Paris} no wait \boxed{London}", "#### Paris\n#### ?",
    r"\boxed{Paris} or \boxed{London}", r"\boxed{Paris}, \boxed{London}", r"\boxed{}", "", "  \n ",
    r"\boxed{Paris} \boxed{", "Paris is nice.\nI don't know", "The answer is unclear. Paris",
    "Answer: Pariș", "Answer: P a r i s", "Answer: -Paris", "Answer: Paris/London", "Answer:",
    "Answer: Paris; London", "Answer: everything", "Answer: *", "Answer: " + "Paris " * 1000,
]  # fmt: skip

COLOURS = [
    "Answer: red, green, blue", "Answer: blue, green, red", "Answer: red, green and blue",
    "Answer: red, green, and blue", "Answer: red; green; blue", "Answer: {red, green, blue}",
    "Answer: [red, green, blue]", "Answer: (red, green, blue)", "Answer: Red, Green, Blue.",
    r"\boxed{red, green, blue}", r"\boxed{\{red, green, blue\}}", "Answer: red & green & blue",
    "Answer: red, red, green, blue", "Answer: the red, the green, the blue", "#### red,green,blue",
    'Answer: "red", "green", "blue"', "Answer: **red**, **green**, **blue**", "red, green, blue",
    r"\boxed{red}, \boxed{green}, \boxed{blue}", r"\boxed{red}, \boxed{green} and \boxed{blue}",
    "The answer is red, green and blue.", "Answer: red , green , blue",
    "Answer: red, green\nSorry.\nAnswer: red, green, blue", "red\nred, blue, green",
]  # fmt: skip
NOT_COLOURS = [
    "Answer: red, green", "Answer: red, green, blue, black", "Answer: red green blue", "Answer: red",
    "Answer: red, green or blue", "Answer: not red, green, blue", "Answer: red, green, bluish", "",
    "Answer: red, green, not blue", "Answer: redgreenblue", "Answer: {}", "Answer: ,,,", r"\boxed{}",
    "Answer: red, green, blue\nAnswer: red", r"\boxed{red} \boxed{green} \boxed{blue}",
    "Answer: all of them", "Answer: red, green, blue, x", "Answer: r, g, b", "Answer: 3",
    "Answer: red, green, blue or black", "Answer: red, green, blue, etc", "red\ngreen\nblue",
    "Answer: {red, green}, {blue}, {black}", "Answer: black, white, grey", "Answer:",
]  # fmt: skip


def graded(grader, text: str, reference: str) -> bool:
    return grader.grade([text], [Question("q", "", reference)])[0].correct


@pytest.mark.parametrize("text", PARIS)
def test_the_same_words_pass(text):
    assert graded(ExactGrader(), text, "Paris")


@pytest.mark.parametrize("text", NOT_PARIS)
def test_other_words_fail(text):
    assert not graded(ExactGrader(), text, "Paris")


@pytest.mark.parametrize("text", COLOURS)
def test_the_same_set_passes(text):
    assert graded(SetGrader(), text, "red, green, blue")


@pytest.mark.parametrize("text", NOT_COLOURS)
def test_another_set_fails(text):
    assert not graded(SetGrader(), text, "red, green, blue")


def test_the_tables_are_large_enough():
    assert len(PARIS + NOT_PARIS + COLOURS + NOT_COLOURS) >= 100


words = st.lists(
    st.sampled_from(["red", "green", "blue", "black", "white"]), min_size=1, max_size=4
)


@given(words, words)
def test_sets_agree_only_when_equal(left, right):
    assert graded(SetGrader(), "Answer: " + ", ".join(left), ", ".join(right)) == (
        set(left) == set(right)
    )


def test_order_is_free():
    for order in itertools.permutations(["red", "green", "blue"]):
        assert graded(SetGrader(), "Answer: " + ", ".join(order), "red, green, blue")


@given(st.text(max_size=200))
def test_any_text_is_graded(text):
    for grader in (ExactGrader(), SetGrader()):
        parsed = grader.extract(text)
        assert parsed is None or parsed
