"""The embedded task: add up a row of digits, e.g. ``3+8+6+9+5+4+2+7`` (answer 44).

It needs no file, no network and no pretrained model. Answering in one step means adding all digits
at once, which a small model does only roughly: it is off by one or two. Checking an answer digit by
digit is easy, and a failed check says to which side the answer is off and by how much. A
generator / verifier / refiner pipeline lives on that gap between answering and checking, so the
task shows the method on a very small budget.

There are ``9 ** TERMS`` questions. A hash of its text alone assigns each to the train or the eval
split, so the splits cannot overlap, whatever seed or count is asked for.
"""

from __future__ import annotations

import hashlib
import random
import re
from functools import lru_cache

from malt_jax.errors import UserError
from malt_jax.tasks.base import ComparingGrader, Question, Task
from malt_jax.tasks.files import Row, read_rows
from malt_jax.tasks.loading import choose, to_questions

TERMS = 8
DIGITS = range(1, 10)
EVAL_SHARE = 5
"""One question in this many belongs to the eval split."""
COUNTS = {"train": 20_000, "eval": 5_000}
"""How many questions a split offers: few enough to list, far fewer than there are."""
SPLITS = tuple(COUNTS)
ANSWER = re.compile(r"=(\d+)\s*$")
"""The final answer is the last thing in a turn, e.g. ``=37``."""
ANSWER_FORMAT = "End with an equals sign and the answer."
# Short, because the embedded model reads one character per token.
TEMPLATES = {
    "generator": "solve|{question}|",
    "verifier": "check|{question}|{generator}|",
    "refiner": "fix|{question}|{generator}|{verifier}|",
    "retry": "retry|{question}|{previous}|",
    "debate": "debate|{question}|{previous};{other_1};{other_2}|",
}


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
    # Eight bytes of the hash as a number: its remainder is uniform over the questions.
    digest = hashlib.sha256(text.encode()).digest()
    return "eval" if int.from_bytes(digest[:8], "big") % EVAL_SHARE == 0 else "train"


@lru_cache(maxsize=8)
def _questions(split: str, seed: int) -> tuple[tuple[str, str], ...]:
    """All distinct (question, answer) that a split offers, in the order of a seed."""
    # `random` hashes a text by itself, so the order is the same in every process.
    rng = random.Random(f"arithmetic:{split}:{seed}")
    found: dict[str, str] = {}
    while len(found) < COUNTS[split]:
        digits = tuple(rng.choice(DIGITS) for _ in range(TERMS))
        text = question_text(digits)
        if split_of(text) == split:
            found[text] = str(sum(digits))
    return tuple(found.items())


def make_question(index: int, seed: int, split: str = "train") -> tuple[str, str]:
    """Question ``index`` of a split in the order of ``seed``, as ``(question, answer)``.

    Different indices give different questions, so a set made from ``range(n)`` has no duplicate.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}, not {split!r}")
    if not 0 <= index < COUNTS[split]:
        raise IndexError(f"the {split} split offers {COUNTS[split]} questions, asked for {index}")
    return _questions(split, seed)[index]


def extract_answer(text: str) -> str | None:
    """The number at the end of a turn, as a plain decimal string; None without one."""
    match = ANSWER.search(text)
    # By way of a number, so that `=044` and `=44` are the same answer.
    return str(int(match.group(1))) if match else None


def is_correct(text: str, answer: str) -> bool:
    """Whether a turn's final answer equals the reference; no answer counts as wrong."""
    return extract_answer(text) == answer


def load(
    split: str, path: str | None = None, limit: int | None = None, seed: int | None = None
) -> list[Question]:
    """`limit` questions (default all) in the order of `seed` (default 0), or those of a file.

    A question's id is a hash of its text, so it means the same question under every seed.
    """
    if path is not None:
        return choose(to_questions(read_rows(path), _parse, split), limit, seed)
    if split not in SPLITS:
        raise UserError(f"no split {split!r}; choose from {', '.join(SPLITS)}")
    available = COUNTS[split]
    if limit is not None and not 0 < limit <= available:
        raise UserError(
            f"{limit} arithmetic questions asked for; the {split} split holds {available}"
        )
    pairs = (make_question(i, seed or 0, split) for i in range(limit or available))
    return [_question(split, text, answer) for text, answer in pairs]


def _question(split: str, text: str, answer: str) -> Question:
    """The Question, with its level in `meta`.

    Sums far from the middle one are rare, and so less practised.
    """
    low = sum(parse_question(text)) // 10 * 10
    identity = f"{split}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    return Question(identity, text, answer, {"level": f"sum {low} to {low + 9}"})


def _parse(row: Row, split: str) -> Question:
    text = row.text("question")
    try:
        total = sum(parse_question(text))
    except ValueError as error:
        example, _ = make_question(0, 0, split)
        raise row.fail(str(error)[:200], f"write it as {example}") from None
    answer = row.text("answer", numbers=True).strip()
    if answer != str(total):
        raise row.fail(f"`answer` is {answer[:40]!r}, the digits sum to {total}", "write the sum")
    return _question(split, text, answer)


class ArithmeticGrader(ComparingGrader):
    """Right when the number at the end of a turn is the reference."""

    def extract(self, text: str, question: Question | None = None) -> str | None:
        return extract_answer(text)


def task() -> Task:
    return Task(
        name="arithmetic",
        description="sums in one line, for a small model trained in minutes",
        load=load,
        grader=ArithmeticGrader(),
        templates=TEMPLATES,
        answer_format=ANSWER_FORMAT,
    )
