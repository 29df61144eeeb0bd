"""SVAMP: one-step word problems with distracting numbers (arXiv 2103.07191)."""

from __future__ import annotations

from malt_jax.tasks.base import Question, Task
from malt_jax.tasks.files import Row
from malt_jax.tasks.graders import ANSWER_FORMATS
from malt_jax.tasks.graders.number import NumberGrader, value_of
from malt_jax.tasks.graders.numerals import Unreadable, canonical
from malt_jax.tasks.loading import Hub, Unusable, benchmark

HUB = "ChilleD/SVAMP"


def parse(row: Row, split: str) -> Question:
    """The columns of the hub, `ID`, `Body`, `Question` and on, or `id`, `question`, `answer`."""
    if row.has("Body") and not row.has("question_concat"):
        text = f"{row.text('Body').strip()} {row.text('Question').strip()}"
    else:
        text = row.text("question_concat", "question")
    written = row.text("Answer", "answer", numbers=True)
    try:
        answer = canonical(value_of(written))
    except Unreadable as reason:
        raise Unusable.of(
            row, f"the answer is not one number ({reason})", "give it in figures"
        ) from None
    meta = {"subject": row.text("Type")} if row.has("Type") else {}
    return Question(row.identity(split, "ID", "id"), text.strip(), answer, meta)


def task() -> Task:
    return benchmark(
        "svamp",
        "one-step word problems with distracting numbers",
        NumberGrader(),
        ANSWER_FORMATS["number"],
        train=(Hub(HUB, (None,), "train"), parse),
        evaluation=(Hub(HUB, (None,), "test"), parse),
    )
