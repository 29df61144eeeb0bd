"""A generated task: add up a row of digits, e.g. ``3+8+6+9+5+4+2+7`` (answer 44).

Answering in one step means adding all of them at once, which a small model does only roughly: it is
off by one or two. Checking an answer digit by digit is easy, and a failed check says to which side
the answer is off and by how much. That gap between answering and checking is what a generator /
verifier / refiner pipeline lives on, so the task shows the method on a very small budget.

There are ``9 ** TERMS`` questions. Each belongs to the train or the eval split by a hash of its
text alone: the splits cannot overlap, whatever seed or count is asked.
"""

from __future__ import annotations

import hashlib
import random
import re
from functools import lru_cache

TERMS = 8
DIGITS = range(1, 10)
EVAL_SHARE = 5
"""One question in this many belongs to the eval split."""

COUNTS = {"train": 20_000, "eval": 5_000}
"""How many questions a split offers: few enough to list, far fewer than there are."""

SPLITS = tuple(COUNTS)
ANSWER = re.compile(r"=(\d+)\s*$")
"""The final answer is the last thing a turn says, e.g. ``=37``."""


def question_text(digits: tuple[int, ...]) -> str:
    """``question_text((3, 8, 6)) == "3+8+6"``."""
    return "+".join(str(digit) for digit in digits)


def parse_question(text: str) -> tuple[int, ...]:
    """``"3+8+6"`` -> ``(3, 8, 6)``; ValueError if ``text`` is not a sum of single digits."""
    if not re.fullmatch(r"[1-9](\+[1-9])*", text):
        raise ValueError(f"not an arithmetic question: {text!r}, expected digits joined by '+'")
    return tuple(int(digit) for digit in text.split("+"))


def split_of(text: str) -> str:
    """The split of a question, from the SHA-256 of its text: no seed or count can move it."""
    digest = hashlib.sha256(text.encode()).digest()
    return "eval" if int.from_bytes(digest[:8], "big") % EVAL_SHARE == 0 else "train"


class _Stream:
    """The distinct questions of a split in the order of a seed, drawn as far as they are asked."""

    def __init__(self, split: str, seed: int):
        self.split, self.rows, self.seen = split, [], set()
        self.rng = random.Random(f"arithmetic:{split}:{seed}")

    def get(self, index: int) -> tuple[str, str]:
        while len(self.rows) <= index:
            digits = tuple(self.rng.choice(DIGITS) for _ in range(TERMS))
            text = question_text(digits)
            if text not in self.seen and split_of(text) == self.split:
                self.seen.add(text)
                self.rows.append((text, str(sum(digits))))
        return self.rows[index]


@lru_cache(maxsize=8)
def _stream(split: str, seed: int) -> _Stream:
    return _Stream(split, seed)


def count(split: str) -> int:
    """How many distinct questions a split offers."""
    return COUNTS[split]


def make_question(index: int, seed: int, split: str = "train") -> tuple[str, str]:
    """Question ``index`` of a split in the order of ``seed``, as ``(question, answer)``.

    Different indices give different questions, so a set made from ``range(n)`` has no duplicate.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}, not {split!r}")
    if not 0 <= index < COUNTS[split]:
        raise IndexError(f"the {split} split offers {COUNTS[split]} questions, asked for {index}")
    return _stream(split, seed).get(index)


def extract_answer(text: str) -> str | None:
    """The number a turn answers with, as a plain decimal string, or None if it has none."""
    match = ANSWER.search(text)
    return str(int(match.group(1))) if match else None


def is_correct(text: str, answer: str) -> bool:
    """Whether a turn's final answer equals the reference; no answer counts as wrong."""
    return extract_answer(text) == answer
