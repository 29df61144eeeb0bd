"""A generated task: write the letters of a word in the order of the alphabet, e.g. ``dkbtam``.

The answer is ``=abdkmt``. An answer is checked from left to right, and a failed check shows the
place: a letter that comes too late, or one that is not in the word. So most of a wrong answer can
be kept, where a failed check of a triple (`malt_jax.tasks.triples`) throws all away.
"""

from __future__ import annotations

import random
import re
from itertools import pairwise
from string import ascii_lowercase

from malt_jax.tasks.generated import Generated

LENGTH = 6
QUESTION = re.compile(r"[a-z]{2,26}")
ANSWER = re.compile(r"=([a-z]+)\s*$")
"""The final answer is the last thing in a turn, e.g. ``=abdkmt``."""


def draw(rng: random.Random) -> str:
    """A random question: different letters, which are not in order yet."""
    while True:
        letters = rng.sample(ascii_lowercase, LENGTH)
        if letters != sorted(letters):
            return "".join(letters)


def solve(text: str) -> str:
    """The answer of a question; ValueError if it is none, or repeats a letter."""
    if not QUESTION.fullmatch(text) or len(set(text)) < len(text):
        raise ValueError(f"not an order question: {text!r}, expected different letters from a to z")
    return "".join(sorted(text))


def extract_answer(text: str) -> str | None:
    """The letters at the end of a turn; None without any."""
    match = ANSWER.search(text)
    return match[1] if match else None


def _level(text: str) -> str:
    """How many letters are neighbours in the alphabet, which are easily exchanged."""
    letters = solve(text)
    near = sum(ord(b) - ord(a) == 1 for a, b in pairwise(letters))
    return f"neighbours: {near}"


GENERATED = Generated(
    name="order",
    description="put six letters in order, for a small model trained in minutes",
    draw=draw,
    solve=solve,
    extract=extract_answer,
    level=_level,
    mismatch=lambda right: (f"in order they are {right}", "write that"),
    answer_format="End with an equals sign and the letters in the order of the alphabet.",
)
task = GENERATED.task
