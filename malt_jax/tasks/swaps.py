"""A generated task: exchange letters of a word, step by step, e.g. ``dkbt:13,24,12``.

``13`` exchanges the first and the third letter; the answer is ``=tbdk``. An answer is checked
backwards: the exchanges are undone from the last to the first, which must lead to the word of the
question. A failed check ends in another word, and says by it which letters of the answer are in the
wrong place, but not where they belong: that has to be followed forward through the exchanges.
"""

from __future__ import annotations

import random
import re
from string import ascii_lowercase

from malt_jax.tasks.generated import Generated

LETTERS, SWAPS = 4, 3
QUESTION = re.compile(r"([a-z]{2,9}):(\d\d(?:,\d\d)*)")
ANSWER = re.compile(r"=([a-z]+)\s*$")
"""The final answer is the last thing in a turn, e.g. ``=tbdk``."""


def draw(rng: random.Random) -> str:
    """A random question: different letters, and exchanges of which no two in a row are the same."""
    pairs = [f"{a}{b}" for a in range(1, LETTERS + 1) for b in range(a + 1, LETTERS + 1)]
    swaps = [rng.choice(pairs)]
    while len(swaps) < SWAPS:
        # The same exchange twice in a row would do nothing.
        if (swap := rng.choice(pairs)) != swaps[-1]:
            swaps.append(swap)
    return f"{''.join(rng.sample(ascii_lowercase, LETTERS))}:{','.join(swaps)}"


def parse_question(text: str) -> tuple[str, list[tuple[int, int]]]:
    """``"dkbt:13,24"`` -> ``("dkbt", [(0, 2), (1, 3)])``; ValueError if it is no such question."""
    match = QUESTION.fullmatch(text)
    swaps = [(int(s[0]) - 1, int(s[1]) - 1) for s in match[2].split(",")] if match else []
    if not match or not all(0 <= a < b < len(match[1]) for a, b in swaps):
        raise ValueError(f"not a swaps question: {text!r}, expected such as dkbt:13,24,12")
    if len(set(match[1])) < len(match[1]):
        raise ValueError(f"not a swaps question: {text!r} repeats a letter")
    return match[1], swaps


def swapped(word: str, swap: tuple[int, int]) -> str:
    """The word with the letters at two places exchanged."""
    letters = list(word)
    a, b = swap
    letters[a], letters[b] = letters[b], letters[a]
    return "".join(letters)


def solve(text: str) -> str:
    """The answer of a question; ValueError, in one sentence, if it is none."""
    word, swaps = parse_question(text)
    for swap in swaps:
        word = swapped(word, swap)
    return word


def extract_answer(text: str) -> str | None:
    """The word at the end of a turn; None without one."""
    match = ANSWER.search(text)
    return match[1] if match else None


def _level(text: str) -> str:
    """How many letters end where they began."""
    word, _ = parse_question(text)
    same = sum(a == b for a, b in zip(word, solve(text), strict=True))
    return f"{same} letters in place" if same != 1 else "1 letter in place"


GENERATED = Generated(
    name="swaps",
    description="exchange letters step by step, for a small model trained in minutes",
    draw=draw,
    solve=solve,
    extract=extract_answer,
    level=_level,
    mismatch=lambda right: (f"the exchanges lead to {right}", "write that"),
    answer_format="End with an equals sign and the word that the exchanges lead to.",
)
task = GENERATED.task
