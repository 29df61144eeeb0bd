"""The embedded task: add up a row of digits, e.g. ``3+8+6+9+5+4+2+7`` (answer 44).

It needs no file, no network and no pretrained model. Answering in one step means adding all digits
at once, which a small model does only roughly: it is off by one or two. Checking an answer digit by
digit is easy, and a failed check says to which side the answer is off and by how much. A
generator / verifier / refiner pipeline lives on that gap between answering and checking, so the
task shows the method on a very small budget.
"""

from __future__ import annotations

import random
import re

from malt_jax.tasks.generated import Generated

TERMS = 8
DIGITS = range(1, 10)
ANSWER = re.compile(r"=(\d+)\s*$")
"""The final answer is the last thing in a turn, e.g. ``=37``."""


def draw(rng: random.Random) -> str:
    """A random question."""
    return question_text(tuple(rng.choice(DIGITS) for _ in range(TERMS)))


def question_text(digits: tuple[int, ...]) -> str:
    """``question_text((3, 8, 6)) == "3+8+6"``."""
    return "+".join(str(digit) for digit in digits)


def parse_question(text: str) -> tuple[int, ...]:
    """``"3+8+6"`` -> ``(3, 8, 6)``; ValueError if ``text`` is not a sum of single digits."""
    if not re.fullmatch(r"[1-9](\+[1-9])*", text):
        raise ValueError(f"not an arithmetic question: {text!r}, expected digits joined by '+'")
    return tuple(int(digit) for digit in text.split("+"))


def extract_answer(text: str) -> str | None:
    """The number at the end of a turn, as a plain decimal string; None without one."""
    match = ANSWER.search(text)
    # By way of a number, so that `=044` and `=44` are the same answer.
    return str(int(match.group(1))) if match else None


def _level(text: str) -> str:
    """Sums far from the middle one are rare, and so less practised."""
    low = sum(parse_question(text)) // 10 * 10
    return f"sum {low} to {low + 9}"


GENERATED = Generated(
    name="arithmetic",
    description="sums in one line, for a small model trained in minutes",
    draw=draw,
    solve=lambda text: str(sum(parse_question(text))),
    extract=extract_answer,
    level=_level,
    mismatch=lambda right: (f"the digits sum to {right}", "write the sum"),
    answer_format="End with an equals sign and the answer.",
)
make_question = GENERATED.make_question
task = GENERATED.task
