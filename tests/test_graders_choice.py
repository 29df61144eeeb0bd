"""The choice grader: one label, and none where the text names two or denies one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from malt_jax.tasks import get_task
from malt_jax.tasks.base import Question
from malt_jax.tasks.graders.choice import ChoiceGrader
from malt_jax.tree.prompts import fill

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
    # reasons and contrasts are free
    "The answer is (B), because it does not ignore the rules.",
    "The answer is (B) because the others are wrong.",
    "The answer is (B), which is neither harsh nor weak.",
    "The answer is (B) enforce, not (A) ignore.",
    "The answer is (B), not (A).",
    "The answer is (B) rather than (C).",
    "The answer is (B). Option (A) is too weak and (D) is wrong.",
    "The answer is (B) enforce. I chose this since (A) is weak.",
    "Answer: B\nExplanation: A is weak",
    # the text first, or another word than "answer"
    "The answer is enforce (B).",
    'The answer is "enforce" (B).',
    "The answer is enforce, (B).",
    "The correct option is (B).",
    "The correct choice is B.",
    "So (B) is the answer.",
    "The answer is most likely (B).",
    "Option (B) is correct.",
    r"\boxed{\boxed{B}}",
    r"\boxed{\text{(B) enforce}}",
    r"\boxed{(B) \text{ enforce}}",
    "The answer cannot be (B).\n(B)",
    # other ways to state it
    "The answer must be (B).",
    "The answer has to be B.",
    "The answer is:\n- (B) enforce",
    "Answer - B",
    "Ans: B",
    "The answer is answer choice B.",
    "The answer is obviously B.",
    "The answer is to enforce.",
    "I would choose (B).",
    "It is B.",
    "So it's B) enforce.",
    "<answer>B</answer>",
    "<answer>\n(B) enforce\n</answer>",
    "The answer is B</s>",
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
    # several choices
    "The answer is B, C, D.",
    "The answer is B, A, C, D, E.",
    "The answer is B, C and D.",
    "The answer is B; C; D",
    "The answer is B - C - D",
    "The answer is B. C. D.",
    "The answer is (B, C)",
    "The answer is (B/C)",
    "The answer is B vs C.",
    "The answer is (B) + (C)",
    "The answer is B) enforce, C) yell at.",
    "The answer is B) enforce, D) yell at.",
    "The answer is (B) enforce and D yell at.",
    "The answer is enforce, ignore.",
    "The answer is enforce and ignore.",
    "The answer is (B) enforce (ignore is fine too).",
    r"\boxed{B,C,D}",
    r"\boxed{\text{B, C}}",
    r"\boxed{B \text{ and } C}",
    r"\boxed{B \cup C}",
    # hedges
    "The answer is (B) but maybe C.",
    "The answer is (B), alternatively C.",
    "The answer is (B), possibly C.",
    "The answer is (B) unless it is C.",
    "The answer is (B), if not then (C).",
    "The answer is (B) as well as (C).",
    # denials
    r"The answer is not \boxed{B}.",
    r"The answer is C or \boxed{B}.",
    r"\boxed{B} is wrong.",
    r"\boxed{B} or C",
    "I don't think the answer is (B).",
    "The wrong answer is (B).",
    "None of the answers is (B).",
    "If the answer is (B), then schools are punished.",
    "The answer is (B)? No.",
    "The answer is (B). That is wrong.",
    "The answer is (B). Actually it is C.",
    "The answer is A. enforce",
    "(B) is tempting.",
    # asked, in doubt, or taken back
    "The answer is (B)?",
    "(B)?",
    r"\boxed{B?}",
    "B, maybe.",
    "B, but I am not sure",
    "(B) cannot be right.",
    "The answer is (B). Wait, (C).",
    "The answer is (B). Correction: (C).",
    "The answer is (B). Actually, (C).",
    "The answer is enforce, which is option (D).",
    "Some say the answer is (B).",
    "The least likely answer is (B).",
    "The second best answer is (B).",
    r"\boxed{A}\boxed{B}",
    # the question, copied
    "Where?\n(A) ignore\n(B) enforce",
    "(A) ignore\n\nB",
]

# Answers as small instruct models write them; (A) is ignore, (B) enforce, (D) yell at.
MODELS_SAY_B = [
    "The answer is b) enforce",
    "The answer is b. enforce",
    "The answer is b: enforce",
    "The answer is b) enforce.",
    "The answer is b. enforce, because schools are punished.",
    "The answer is b - enforce",
    "The answer is B enforce",
    "The answer is option b.",
    "The answer is option b) enforce",
    "The answer is (b) enforce.",
    "The answer is **b) enforce**.",
    "The answer is **B. enforce**",
    "The correct answer is **(B) enforce**.",
    "The correct answer is:\n\nB. enforce",
    "The correct answer is: **B) enforce**",
    "Answer: b) enforce",
    "Answer: b",
    "**Answer:** B. enforce",
    "The answer is b, since rules are meant to hold.",
    "Therefore, the best answer is (B) enforce.",
    "So, the answer is B) enforce, not A) ignore.",
    "The best choice is B: enforce.",
    r"The final answer is: $\boxed{B}$",
    r"The answer is $\boxed{\text{b) enforce}}$",
    "Let's check each choice.\n(A) ignore: no.\n(B) enforce: yes.\nThe answer is (B) enforce.",
    "(A) does not fit. (D) is too harsh.\n\nThe answer is (B).",
    "The answer is the enforce.",
    "B) enforce",
    "b. enforce",
    "Answer: (B) enforce\n\nExplanation: to ignore would be against the rules.",
]
MODELS_DO_NOT_SAY_B = [
    # letter and text of different choices
    "The answer is a) enforce",
    "The answer is a. enforce",
    "The answer is b) ignore",
    "The answer is b. ignore",
    "The answer is B. ignore, because it fits.",
    "The answer is (B) ignore, since schools do.",
    "The answer is (A): enforce.",
    "The answer is A - enforce",
    "The answer is **b) ignore**",
    "Answer: b. yell at",
    "The answer is d) enforce.",
    # other labels, in the forms that count
    "The answer is a) ignore",
    "The answer is a. ignore",
    "The answer is d. yell at, because enforce is too weak.",
    "The answer is d) yell at",
    "Answer: d",
    # an article is no label
    "The answer is a way to enforce.",
    "The answer is a bit of both: enforce and ignore.",
    "The answer is e.g. enforce",
    # two of them, or none
    "The answer is a) ignore or b) enforce",
    "The answer is b) enforce or d) yell at",
    "The answer is b) enforce and a) ignore",
    "The answer is either b) enforce or something else.",
    "The answer is not b) enforce",
    "The answer isn't b. enforce",
    "a) ignore\nb) enforce",
    "The answer could be b) enforce, but a) ignore is better.\nThe answer is a) ignore.",
    "The answer is b) enforce. No, the answer is a) ignore.",
    "I am not sure whether it is a) or b).",
    "The answer is b) enforce? No.",
    "The answer is b) but also a)",
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
    "The answer is yes, they are not extinct.",
    "The answer is yes, since it isn't illegal.",
    "The answer is yes (true).",
    "The answer is yes/true.",
    "Yes, they do.",
    r"The answer is \boxed{yes}",
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
    "Yes?",
    "The answer is yes?",
    "",
    "The answer is yes for men and no for women.",
    "The answer is yes, but also no.",
    "The answer is yes and also no.",
    "The answer is yes, unless no.",
    "The answer is yes; no.",
    "yes - no",
    "Is the answer yes?",
    "The answer is yes? No.",
    "The answer is yes no",
    "The answer is true and false.",
    "The answer is true, false",
    "The answer is true (false)",
    r"The answer is not \boxed{yes}",
]
SAYS_NO = [
    "The answer is no.",
    "The answer is no, because penguins do not fly.",
    "The answer is no, it's not possible.",
    "The answer is no. He did not.",
    "No, because penguins do not fly.",
    "The answer is no, penguins are neither big nor small.",
    'The answer is "no".',
]
NOT_NO = [
    "The answer is no idea.",
    "The answer is no doubt yes.",
    "The answer is no longer clear.",
    "The answer is no one knows.",
    "The answer is no problem: yes.",
    "The answer is no-brainer yes.",
    "No one knows.",
    "no idea",
    "The answer is no but yes.",
    "The answer is no for men and yes for women.",
    "The answer is no in 2020, yes in 2021.",
    "The answer is No. Yes.",
    "The answer is no (yes).",
    "I don't think the answer is no.",
]


def says(text: str, grader: ChoiceGrader, question: Question) -> bool:
    return grader.grade([text], [question])[0].correct


@pytest.mark.parametrize("text", SAYS_B + MODELS_SAY_B)
def test_the_chosen_label_is_read(text):
    assert says(text, ChoiceGrader(), LETTERS)


@pytest.mark.parametrize("text", NOT_B + MODELS_DO_NOT_SAY_B)
def test_another_label_two_labels_or_none_fail(text):
    assert not says(text, ChoiceGrader(), LETTERS)


@pytest.mark.parametrize("text", SAYS_YES)
def test_yes_is_read(text):
    assert says(text, YES_NO, Question("q", "", "yes"))


@pytest.mark.parametrize("text", NOT_YES)
def test_not_yes_fails(text):
    assert not says(text, YES_NO, Question("q", "", "yes"))


@pytest.mark.parametrize("text", SAYS_NO)
def test_no_is_read(text):
    assert says(text, YES_NO, Question("q", "", "no"))


@pytest.mark.parametrize("text", NOT_NO)
def test_no_at_the_start_of_other_words_fails(text):
    assert not says(text, YES_NO, Question("q", "", "no"))


@pytest.mark.parametrize("name", ["csqa", "strategyqa"])
def test_a_copy_of_the_prompt_names_no_choice(name):
    task = get_task(name)
    listed = "".join(f"\n({label}) {text}" for label, text in CHOICES.items())
    question = Question("q", "Where?" + listed, "A", {"choices": CHOICES})
    prompt = fill(task.templates["generator"], {"question": question.text})
    for text in (prompt, prompt.rpartition("\n\nProblem")[0], question.text, task.answer_format):
        assert task.grader.extract(text) is None
        assert ChoiceGrader().extract(text, question) is None


def test_no_text_is_right_for_two_different_references():
    questions = [Question("q", "", label, {"choices": CHOICES}) for label in CHOICES]
    for text in SAYS_B + NOT_B + MODELS_SAY_B + MODELS_DO_NOT_SAY_B:
        assert sum(says(text, ChoiceGrader(), q) for q in questions) <= 1, text


def test_a_text_that_two_choices_share_decides_nothing_alone():
    question = Question("q", "", "A", {"choices": {"A": "home", "B": "barn", "C": "home"}})
    assert says("The answer is (A) home.", ChoiceGrader(), question)
    assert not says("The answer is (C) home.", ChoiceGrader(), question)
    assert not says("The answer is home.", ChoiceGrader(), question)


def test_a_number_as_a_choice_is_read_whole():
    choices = {"A": "1", "B": "10", "C": "$20", "D": "1/2"}
    for text, label in (
        *(("10", "B"), ("(B) 10", "B"), ("$20", "C"), ("1/2", "D"), ("20", "C")),
        *(("10.5", None), ("10,000", None), ("-10", None), ("20%", None), ("1/2/3", None)),
    ):
        question = Question("q", "", label or "B", {"choices": choices})
        assert ChoiceGrader().extract(f"The answer is {text}.", question) == label


def test_the_words_of_a_choice_end_no_sentence():
    choices = {"A": "roll over", "B": "move quickly", "C": "be late"}
    question = Question("q", "", "A", {"choices": choices})
    assert not says("(A) roll over, (B) move quickly, (C) be late", ChoiceGrader(), question)


def test_a_choice_within_another_choice_is_told_apart():
    choices = {"A": "bank", "B": "river bank", "C": "vitamin D", "D": "St. Louis"}
    for label, text in choices.items():
        question = Question("q", "", label, {"choices": choices})
        for other in choices:
            named = f"The answer is ({other}) {text}."
            assert says(named, ChoiceGrader(), question) == (other == label), named


@pytest.mark.timeout(20)
def test_long_hostile_text_takes_bounded_time():
    for text in (":" * 20_000 + "x", "B, " * 20_000, "(" * 20_000, "answer: " * 10_000):
        for grader in (ChoiceGrader(), YES_NO):
            grader.extract(text)


def test_the_tables_are_large_enough():
    assert len(SAYS_B) + len(NOT_B) >= 100
    assert len(MODELS_SAY_B) >= 30 and len(MODELS_DO_NOT_SAY_B) >= 30


CSQA = [  # (choices, the right label), as published: texts that hold others, or share words
    ({"A": "ignore", "B": "enforce", "C": "authoritarian", "D": "yell at", "E": "avoid"}, "A"),
    ({"A": "bank", "B": "library", "C": "department store", "D": "mall", "E": "new york"}, "E"),
    ({"A": "race track", "B": "populated areas", "C": "the desert", "D": "apartment"}, "B"),
    (
        {
            "A": "michigan",
            "B": "new mexico",
            "C": "mexico",
            "D": "mexico city",
            "E": "michigan state",
        },
        "C",
    ),
    ({"A": "feel better", "B": "feel", "C": "better", "D": "feel well", "E": "good"}, "B"),
]


@pytest.mark.parametrize(("choices", "right"), CSQA)
@pytest.mark.parametrize(
    "form", ["{l}) {t}", "{l}. {t}", "({l}) {t}.", "{l}: {t}", "{l}. {t}, because it is."]
)
def test_a_letter_counts_only_with_its_own_text(choices, right, form):
    question = Question("q", "", right, {"choices": choices})
    for label, text in choices.items():
        for letter in (right, right.lower()):
            said = "The answer is " + form.format(l=letter, t=text)
            assert says(said, ChoiceGrader(), question) == (label == right), said


@given(st.text(max_size=200))
def test_any_text_is_graded(text):
    assert ChoiceGrader().extract(text, LETTERS) in {None, *CHOICES}
