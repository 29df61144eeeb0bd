"""A generated task: find the two digits of a row that sum to a target, e.g. ``11:482517``.

The answer is ``=4+7``. Checking one addition and looking two digits up is easy; finding the pair
means a search over all of them. Unlike a failed check of a sum (`malt_jax.tasks.arithmetic`), a
failed check of a pair says only that the pair is wrong: the search has to begin again.
"""

from __future__ import annotations

import random
import re
from itertools import combinations

from malt_jax.tasks.generated import Generated

COUNT = 5
NUMBERS = range(1, 10)
QUESTION = re.compile(r"(\d\d):(\d{2,9})")
ANSWER = re.compile(r"=(\d)\+(\d)\s*$")
"""The final answer is the last thing in a turn, e.g. ``=4+7``."""


def draw(rng: random.Random) -> str:
    """A random question: different digits, of which exactly one pair sums to the target."""
    while True:
        numbers = rng.sample(NUMBERS, COUNT)
        target = sum(rng.sample(numbers, 2))
        text = f"{target:02d}:" + "".join(map(str, numbers))
        if len(solutions(target, numbers)) == 1:
            return text


def parse_question(text: str) -> tuple[int, list[int]]:
    """``"11:4825"`` -> ``(11, [4, 8, 2, 5])``; ValueError if ``text`` is no such question."""
    match = QUESTION.fullmatch(text)
    if not match:
        raise ValueError(
            f"not a pairs question: {text!r}, expected a target of 2 digits and a row of digits"
        )
    return int(match[1]), [int(number) for number in match[2]]


def solutions(target: int, numbers: list[int]) -> list[tuple[int, int]]:
    """All pairs that sum to the target, in the order of the row."""
    return [(a, b) for a, b in combinations(numbers, 2) if a + b == target]


def answer_text(first: int, second: int) -> str:
    """The answer as it is compared, the smaller digit first: ``"4+7"``."""
    return "+".join(map(str, sorted((first, second))))


def solve(text: str) -> str:
    """The answer of a question; ValueError unless exactly one pair sums to the target."""
    found = solutions(*parse_question(text))
    if len(found) != 1:
        raise ValueError(f"{text!r} has {len(found)} pairs that sum to the target, expected one")
    return answer_text(*found[0])


def extract_answer(text: str) -> str | None:
    """The pair at the end of a turn, the smaller digit first; None without one."""
    match = ANSWER.search(text)
    return answer_text(int(match[1]), int(match[2])) if match else None


def _level(text: str) -> str:
    """How close the pair is to one that misses the target by one, which is easily taken for it."""
    target, numbers = parse_question(text)
    near = len(solutions(target - 1, numbers)) + len(solutions(target + 1, numbers))
    return f"{near} pairs off by one" if near != 1 else "1 pair off by one"


GENERATED = Generated(
    name="pairs",
    description="find two digits that sum to a target, for a small model trained in minutes",
    draw=draw,
    solve=solve,
    extract=extract_answer,
    level=_level,
    mismatch=lambda right: (f"the pair is {right}", "write that"),
    answer_format="End with an equals sign and the two numbers joined by a plus.",
)
task = GENERATED.task
