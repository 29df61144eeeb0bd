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


SAME = [  # (reference, text) for the exact grader
    ("St. Louis", "Answer: St. Louis"), ("St. Louis", "The answer is St. Louis. It lies west."),
    ("Dr. Smith", "The answer is Dr. Smith."), ("J. K. Rowling", "Answer: J. K. Rowling"),
    ("U.S. Army", "Answer: U.S. Army"), ("John F. Kennedy", "The answer is John F. Kennedy."),
    ("Washington, D.C.", "Answer: Washington, D.C."), ("correct", "The answer is correct."),
    ("right", "Answer: right"), ("clear", "Answer: clear"), ("Clear water", "Answer: Clear water"),
    ("Clear water", "The answer is clear water."), ("true", "The answer is true."),
    ("Paris", "Answer: *Paris*"), ("Paris", "Answer: _Paris_"), ("Paris", "Answer: (Paris)"),
    ("Paris", "Answer: [Paris]"), ("Paris", "Answer: Paris\u200b"), ("-5", "Answer: −5"),
    ("O'Brien", "Answer: O’Brien"), ("rock 'n' roll", "Answer: rock ’n’ roll"), ("5", "Answer: $5"),
    ("a", "Answer: a"), ("I", "Answer: I"), ("The Who", "Answer: The Who"), ("C++", "Answer: C++"),
    ("__init__", "Answer: __init__"), ("snake_case", "Answer: snake_case"), ("x²", "Answer: x²"),
    ("found in stall", "The answer is found in stall."),
    ("2**3", "Answer: **2**3**"), ("Paris", "Answer:\n- Paris"), ("3.5", "Answer: 3.5"),
]  # fmt: skip
OTHER = [
    ("B", "Answer: A B"), ("C B", "Answer: C A B"), ("102", "Answer: 10²"), ("106", "Answer: 10⁶"),
    ("x2", "Answer: x²"), ("vitamin deficiency", "Answer: vitamin A deficiency"), ("12", "Answer: ½"),
    ("init", "Answer: __init__"), ("23", "Answer: 2**3"), ("5", "Answer: -5"), ("$", "Answer: $"),
    ("Paris", "Answer: Раris"), ("Paris", "The answer is Paris. No, it is London."),
    ("Paris", "The wrong answer is Paris"), ("Paris", "I don't think the answer is Paris."),
    ("Paris", r"The answer is not \boxed{Paris}"), ("Paris", r"\boxed{Paris} is wrong"),
    ("Paris", r"\boxed{Paris} or London"), ("Paris", "None of the answers is Paris"),
    ("Paris", "Answer: Paris? No"), ("Paris", "The answer is Paris. Or London."),
]  # fmt: skip
SAME_SET = [
    ("[1,2],[3,4]", "Answer: [3,4],[1,2]"), ("[1,2],[3,4]", "Answer: [3, 4] and [1, 2]"),
    ("red, green", "Answer:\n- red\n- green"), ("red, green", "Answer:\n1. red\n2. green"),
    ("red, green", "The answers are:\n* green\n* red\n\nThese are colours."),
    ("red, green", "Answer: {red}, {green}"), ("red, green", "Answer: (red), (green)"),
    ("red, green", r"\boxed{\text{red, green}}"), ("red, green", r"\boxed{\text{red}, \text{green}}"),
    ("1,000, 5", "Answer: 5 and 1,000"), ("1, 2", "Answer: 2,1"), ("A, B", "Answer: A, and B"),
]  # fmt: skip
OTHER_SET = [
    ("[1,2],[3,4]", "Answer: 4, [3, 2], 1"), ("1,000", "Answer: 1, 000"), ("1, 102", "Answer: 1, 10²"),
    ("B", "Answer: A B"), ("A, B", "Answer: A B"), ("1, 2", "Answer: ①, ②"),
    ("red, green", "Answer:\n- red\n- green\n- blue"), ("red, green", r"\boxed{red, green} or blue"),
    ("red, green", "None of the answers are red, green"), ("Yes", "Answer: Yes and no"),
    ("red, green", "The wrong answers are red and green"), ("red, green", "Answer: not (red, green)"),
]  # fmt: skip

# Answers as small instruct models write them.
MODELS_SAY = [
    ("Paris", "The capital of France is Paris.\n\nAnswer: Paris"), ("Paris", "**Answer: Paris**"),
    ("Paris", "Step 1: France.\nStep 2: its capital.\n\n**Final Answer:** Paris"), ("Paris", "Answer:\n\n**Paris**"),
    ("Paris", "Answer: Paris  \n\n"), ("Paris", "The final answer is: **Paris**."),
    ("Paris", "So the correct answer is Paris."), ("Paris", "Answer: paris\n"), ("Paris", "#### **Paris**"),
    ("42", "Answer: 42."), ("42", "The answer is ４２。"), ("42", "Answer: ٤٢"), ("3.5", "Answer: 3.5."), ("a knight", "Answer: A knight."),
    ("odd", "The number is odd.\nAnswer: odd"), ("odd", "The answer is **odd**."), ("Mount Everest", "Answer: the Mount  Everest"),
    ("New York", "Answer: “New York”"), ("東京", "答えは東京です。"), ("東京", "答案是東京。"), ("서울", "정답은 서울입니다."), ("Madrid", "La respuesta es Madrid."),
    ("Berlin", "Die Antwort lautet: Berlin."), ("Москва", "Ответ: Москва."), ("القاهرة", "الإجابة هي القاهرة."), ("Dodoma", "Jibu ni Dodoma."),
    ("Lyon", "La réponse est Lyon, parce que c'est ainsi."), ("Zoey is a knight", "Answer: Zoey is a knight"), ("x = 3", "Answer: x = 3"), ("-7", "Answer: −7"),
]  # fmt: skip
MODELS_DO_NOT_SAY = [
    ("Paris", "Answer: Paris, Texas"), ("Paris", "Answer: Paris?\nAnswer: Lyon"), ("Paris", "The answer is Lyon, not Paris."), ("Paris", "Answer: either Paris or Lyon"),
    ("Paris", "Answer: [Paris, Lyon]"), ("Paris", "Paris is the capital.\nAnswer: the capital"), ("Paris", "Answer: Paris is the capital of France"), ("Paris", "The answer is Paris. Wait, no."),
    ("Paris", "答案不是 Paris。"), ("Paris", "La respuesta es Paris o Lyon."), ("Paris", "La réponse n'est pas Paris."), ("Paris", "Die Antwort ist nicht Paris, sondern Lyon."),
    ("東京", "答えは東京ではありません。"), ("東京", "答案是東京或大阪。"), ("서울", "정답은 서울이 아닙니다."), ("Москва", "Ответ: не Москва."), ("Dodoma", "Jibu si Dodoma."),
    ("odd", "Answer: not odd"), ("odd", "Answer: oddly"), ("odd", "The answer is even or odd."), ("42", "Answer: 4 2"), ("42", "Answer: 42.0"), ("42", "Answer: forty-two"), ("42", "Answer: 4٢"),
    ("3.5", "Answer: 3,5"), ("a knight", "Answer: a knight or a knave"), ("a knight", "Answer: a night"), ("x = 3", "Answer: x ≠ 3"), ("7", "Answer: -7"), ("1/2", "Answer: 1/2 or 2"), ("yes", "The answer is yes and no."),
]  # fmt: skip
MODELS_LIST = [
    ("red, green", "Answer: red, green"), ("red, green", "Answer: Red and Green."), ("red, green", "**Answer:** green, red"), ("red, green", "Answer:\n1. red\n2. green\n"),
    ("red, green", "Answer:\n- **red**\n- **green**"), ("red, green", "The answers are red and green."), ("red, green", "Answer: {green, red}"), ("red, green", "Answer: red; green"), ("red, green", "Answer: green & red"),
    ("red, green", r"\boxed{\text{red}, \text{green}}"), ("red, green", "答案是 red、green。"), ("red, green", "Answer: red， green"), ("赤, 青", "答えは赤、青です。"), ("1, 2, 3", "Answer: 3, 2, 1"), ("1, 2, 3", "Answer: [1, 2, 3]"),
    ("1, 2", "Answer: １、２"), ("Zoey is a knight, Ella is a knave", "Answer: Ella is a knave and Zoey is a knight."), ("yes", "Answer: yes"), ("2, 3", "Answer: (2), (3)"), ("a, b, c", "Answer: a, b, and c"),
    ("1,000, 20", "Answer: 20, 1,000"), ("red, green", "Answer: red, green, red"), ("red, green", "Answer: the green, the red"), ("[1,2], [3]", "Answer: [3], [1, 2]"), ("red, green", "So: blue is out.\nAnswer: red, green"),
    ("red, green", "Answer: blue\nNo.\nAnswer: green, red"), ("red, green", "#### red, green"), ("Ann, Bob", "Answer: Ann; Bob."), ("Ann, Bob", "The answer is Bob and Ann."), ("x, y", "Answer: {y}, {x}"),
]  # fmt: skip
MODELS_LIST_OTHERS = [
    ("red, green", "Answer: red"), ("red, green", "Answer: red, green, blue"), ("red, green", "Answer: red or green"), ("red, green", "Answer: red green"), ("red, green", "Answer: neither red nor green"),
    ("red, green", "Answer: red, not green"), ("red, green", "Answer:\n1. red\n2. blue"), ("red, green", "Answer:\n- red\n- green\n- or blue"), ("red, green", "The answer is not red, green."), ("red, green", "Answer: red, green. No, that is wrong."),
    ("red, green", "Answer: red, green, ..."), ("red, green", "Answer: red, green and others"), ("red, green", "Answer: all colours"), ("red, green", "Answer: reddish, green"), ("red, green", "red, green\nAnswer: blue"),
    ("red, green", "Answer: red, green\n\nAnswer: red"), ("赤, 青", "答えは赤、青ではありません。"), ("赤, 青", "答えは赤です。"), ("red, green", "答案是 red 或 green。"), ("1, 2, 3", "Answer: 1, 2"), ("1, 2, 3", "Answer: 123"), ("1, 2, 3", "Answer: 1-3"),
    ("1, 2", "Answer: (1, 2), (3)"), ("1, 2", "Answer: 1.2"), ("1,000, 20", "Answer: 1, 000, 20"), ("[1,2], [3]", "Answer: [1], [2, 3]"), ("Ann, Bob", "Answer: Ann, Bobby"), ("Ann, Bob", "Answer: Ann and not Bob"), ("yes", "Answer: yes, no"), ("x, y", "Answer: xy"), ("a, b", "Answer: a = b"),
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


@pytest.mark.parametrize(("reference", "text"), SAME + MODELS_SAY)
def test_another_spelling_passes(reference, text):
    assert graded(ExactGrader(), text, reference)


@pytest.mark.parametrize(("reference", "text"), OTHER + MODELS_DO_NOT_SAY)
def test_another_answer_fails(reference, text):
    assert not graded(ExactGrader(), text, reference)


@pytest.mark.parametrize(("reference", "text"), SAME_SET + MODELS_LIST)
def test_another_layout_of_the_set_passes(reference, text):
    assert graded(SetGrader(), text, reference)


@pytest.mark.parametrize(("reference", "text"), OTHER_SET + MODELS_LIST_OTHERS)
def test_a_set_of_the_same_words_otherwise_grouped_fails(reference, text):
    assert not graded(SetGrader(), text, reference)


def test_an_answer_longer_than_any_statement_is_refused():
    for grader in (ExactGrader(), SetGrader()):
        assert "401 characters" in grader.check(Question("q", "", "x" * 401))
        assert grader.check(Question("q", "", "x" * 400)) is None


@pytest.mark.timeout(20)
def test_long_hostile_text_takes_bounded_time():
    for text in ("a" + " " * 20_000 + "b", "the " * 20_000, "answer: " * 10_000, "([{" * 20_000):
        for grader in (ExactGrader(), SetGrader()):
            grader.extract(text)


def test_the_tables_are_large_enough():
    assert len(PARIS + NOT_PARIS + COLOURS + NOT_COLOURS) >= 100
    for table in (MODELS_SAY, MODELS_DO_NOT_SAY, MODELS_LIST, MODELS_LIST_OTHERS):
        assert len(table) >= 30


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
