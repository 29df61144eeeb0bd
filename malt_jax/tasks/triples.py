"""A generated task: find the three digits of a row that sum to a target, e.g. ``14:482517``.

The answer is ``=2+5+7``. Checking a sum and looking three digits up is easy; finding the triple
means a search over all of them. Unlike a failed check of a sum (`malt_jax.tasks.arithmetic`), a
failed check of a triple says only that the triple is wrong: the search has to begin again.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable
from itertools import combinations

from malt_jax.tasks.generated import Generated

COUNT = 6
DIGITS = range(1, 10)
QUESTION = re.compile(r"(\d\d):(\d{3,9})")
ANSWER = re.compile(r"=(\d)\+(\d)\+(\d)\s*$")
"""The final answer is the last thing in a turn, e.g. ``=2+5+7``."""


def draw(rng: random.Random) -> str:
    """A random question: different digits, of which exactly one triple sums to the target."""
    while True:
        row = rng.sample(DIGITS, COUNT)
        target = sum(rng.sample(row, 3))
        if len(solutions(target, row)) == 1:
            return f"{target:02d}:{''.join(map(str, row))}"


def parse_question(text: str) -> tuple[int, list[int]]:
    """``"11:4825"`` -> ``(11, [4, 8, 2, 5])``; ValueError if ``text`` is no such question."""
    match = QUESTION.fullmatch(text)
    if not match:
        raise ValueError(
            f"not a triples question: {text!r}, expected a target of 2 digits and a row of digits"
        )
    return int(match[1]), [int(digit) for digit in match[2]]


def solutions(target: int, row: list[int]) -> list[tuple[int, ...]]:
    """All triples that sum to the target, in the order of the row."""
    return [triple for triple in combinations(row, 3) if sum(triple) == target]


def answer_text(digits: Iterable[int]) -> str:
    """The answer as it is compared, in rising order: ``"2+5+7"``."""
    return "+".join(map(str, sorted(digits)))


def solve(text: str) -> str:
    """The answer of a question; ValueError unless exactly one triple sums to the target."""
    found = solutions(*parse_question(text))
    if len(found) != 1:
        raise ValueError(f"{text!r} has {len(found)} triples that sum to the target, expected one")
    return answer_text(found[0])


def extract_answer(text: str) -> str | None:
    """The triple at the end of a turn, in rising order; None without one."""
    match = ANSWER.search(text)
    return answer_text(map(int, match.groups())) if match else None


def _level(text: str) -> str:
    """How many triples miss the target by one, and are easily taken for it."""
    target, row = parse_question(text)
    near = len(solutions(target - 1, row)) + len(solutions(target + 1, row))
    return f"off by one: {near}"


GENERATED = Generated(
    name="triples",
    description="find three digits that sum to a target, for a small model trained in minutes",
    draw=draw,
    solve=solve,
    extract=extract_answer,
    level=_level,
    mismatch=lambda right: (f"the triple is {right}", "write that"),
    answer_format="End with an equals sign and the three digits joined by pluses.",
)
task = GENERATED.task
