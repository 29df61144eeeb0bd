"""A generated task: is the number of a's in a word odd or even, e.g. ``abcacbbaca``.

The answer is ``=even``. A check is as long as the whole calculation, letter by letter, and once a
draft is known to be wrong, only one other answer is left: all depends on the critic. In
`malt_jax.tasks.triples` it is the other way round, a check is easy and a correction is hard.
"""

from __future__ import annotations

import random
import re

from malt_jax.tasks.generated import Generated

LENGTH = 10
LETTERS = "abc"
NAMES = ("even", "odd")
QUESTION = re.compile(r"[abc]{1,40}")
ANSWER = re.compile(r"=(even|odd)\s*$")
"""The final answer is the last thing in a turn, e.g. ``=even``."""


def draw(rng: random.Random) -> str:
    """A random question."""
    return "".join(rng.choices(LETTERS, k=LENGTH))


def parities(text: str) -> list[int]:
    """The number of a's up to each letter, modulo 2; ValueError if ``text`` is no question."""
    if not QUESTION.fullmatch(text):
        raise ValueError(f"not a parity question: {text!r}, expected up to 40 letters of a, b, c")
    return [text[: end + 1].count("a") % 2 for end in range(len(text))]


def solve(text: str) -> str:
    """The answer of a question; ValueError if it is none."""
    return NAMES[parities(text)[-1]]


def extract_answer(text: str) -> str | None:
    """The word at the end of a turn; None without one."""
    match = ANSWER.search(text)
    return match[1] if match else None


GENERATED = Generated(
    name="parity",
    description="is a letter's number odd or even, for a small model trained in minutes",
    draw=draw,
    solve=solve,
    extract=extract_answer,
    level=lambda text: f"a: {text.count('a')}",
    mismatch=lambda right: (f"the number of a's is {right}", "write that"),
    answer_format="End with an equals sign and the word odd or even.",
)
task = GENERATED.task
