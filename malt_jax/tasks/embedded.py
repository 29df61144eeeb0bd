"""The embedded arithmetic task: needs no file, no network and no pretrained model."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from malt_jax.errors import UserError
from malt_jax.tasks import arithmetic
from malt_jax.tasks.base import Grade, Question, Task
from malt_jax.tasks.files import Row, read_rows
from malt_jax.tasks.loading import choose, to_questions

ANSWER_FORMAT = "End with an equals sign and the answer."

# Short, because the embedded model reads one character a token.
TEMPLATES = {
    "generator": "solve|{question}|",
    "verifier": "check|{question}|{generator}|",
    "refiner": "fix|{question}|{generator}|{verifier}|",
    "retry": "retry|{question}|{previous}|",
    "debate": "debate|{question}|{previous};{other_1};{other_2}|",
}


def load(
    split: str, path: str | None = None, limit: int | None = None, seed: int | None = None
) -> list[Question]:
    """`limit` questions (default all) in the order of `seed` (default 0), or those of a file.

    A question's id is a hash of its text, so it means the same question under every seed.
    """
    if path is not None:
        return choose(to_questions(read_rows(path), _parse, split), limit, seed)
    if split not in arithmetic.SPLITS:
        raise UserError(f"no split {split!r}; choose from {', '.join(arithmetic.SPLITS)}")
    available = arithmetic.count(split)
    if limit is not None and not 0 < limit <= available:
        raise UserError(
            f"{limit} arithmetic questions asked for; the {split} split holds {available}"
        )
    pairs = (arithmetic.make_question(i, seed or 0, split) for i in range(limit or available))
    return [_question(split, text, answer) for text, answer in pairs]


def _question(split: str, text: str, answer: str) -> Question:
    """With its level: sums far from the middle one are rare, and so less practised."""
    low = sum(arithmetic.parse_question(text)) // 10 * 10
    return Question(_identity(split, text), text, answer, {"level": f"sum {low} to {low + 9}"})


def _identity(split: str, text: str) -> str:
    return f"{split}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _parse(row: Row, split: str) -> Question:
    text = row.text("question")
    try:
        total = sum(arithmetic.parse_question(text))
    except ValueError as error:
        example, _ = arithmetic.make_question(0, 0, split)
        raise row.fail(str(error)[:200], f"write it as {example}") from None
    answer = row.text("answer", numbers=True).strip()
    if answer != str(total):
        raise row.fail(f"`answer` is {answer[:40]!r}, the digits sum to {total}", "write the sum")
    return _question(split, text, answer)


@dataclass(frozen=True)
class ArithmeticGrader:
    """Right when what `arithmetic` reads at the end of a turn is the reference."""

    def extract(self, text: str) -> str | None:
        return arithmetic.extract_answer(text)

    def grade(self, texts: Sequence[str], questions: Sequence[Question]) -> list[Grade]:
        return [
            Grade(arithmetic.extract_answer(t), arithmetic.is_correct(t, q.answer))
            for t, q in zip(texts, questions, strict=True)
        ]


def task() -> Task:
    return Task(
        name="arithmetic",
        description="sums in one line, for a small model trained in minutes",
        load=load,
        grader=ArithmeticGrader(),
        templates=TEMPLATES,
        answer_format=ANSWER_FORMAT,
    )
