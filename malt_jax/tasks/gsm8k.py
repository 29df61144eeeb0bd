"""GSM8K and GSM-Symbolic: word problems with numeric answers (arXiv 2110.14168, 2410.05229).

GSM-Symbolic redraws the names and numbers of GSM8K's test problems; `p1` and `p2` add one and two
clauses. It is made for measuring: its train split is GSM8K's, as published.
"""

from __future__ import annotations

from dataclasses import replace

from malt_jax.tasks.base import Question, Task
from malt_jax.tasks.files import Row
from malt_jax.tasks.graders import ANSWER_FORMATS
from malt_jax.tasks.graders.number import NumberGrader, value_of
from malt_jax.tasks.graders.numerals import Unreadable, canonical
from malt_jax.tasks.loading import Hub, benchmark

TRAIN = Hub("openai/gsm8k", ("main",), "train")
VARIANTS = {
    "main": "GSM8K test problems redrawn",
    "p1": "GSM8K test problems redrawn, one clause more",
    "p2": "GSM8K test problems redrawn, two clauses more",
}


def parse(row: Row, split: str) -> Question:
    """Columns `question` and `answer`; the answer is a solution that ends in `#### N`.

    The level is the number of calculations that the solution marks as `<<48/2=24>>`.
    """
    solution = row.text("answer")
    _, marker, last = solution.rpartition("####")
    if not marker:
        raise row.fail("`answer` holds no `####`", "end the solution with a line `#### 42`")
    try:
        answer = canonical(value_of(last))
    except Unreadable as reason:
        raise row.fail(
            f"what follows `####` is not one number ({reason})", "write `#### 42`"
        ) from None
    steps = solution.count("<<")
    meta = {"level": f"{steps} step{'s' * (steps > 1)}"} if steps else {}
    return Question(row.identity(split, "id"), row.text("question"), answer, meta)


def parse_symbolic(row: Row, split: str) -> Question:
    """GSM8K's columns; `id` numbers the template and `instance` the draw from it."""
    question = parse(row, split)
    if not row.has("instance"):
        return question
    # The id repeats in every draw of a template, so only both together name a question.
    template, instance = row.identity(split, "id"), row.identity(split, "instance")
    meta = {**question.meta, "template": template, "instance": instance}
    return replace(question, id=f"{template}-{instance}", meta=meta)


def task() -> Task:
    return benchmark(
        "gsm8k",
        "grade-school word problems, numeric answers",
        NumberGrader(),
        ANSWER_FORMATS["number"],
        train=(TRAIN, parse),
        evaluation=(Hub("openai/gsm8k", ("main",), "test"), parse),
    )


def symbolic(variant: str) -> Task:
    return benchmark(
        "gsm_symbolic" if variant == "main" else f"gsm_symbolic_{variant}",
        VARIANTS[variant],
        NumberGrader(),
        ANSWER_FORMATS["number"],
        train=(TRAIN, parse),
        evaluation=(Hub("apple/GSM-Symbolic", (variant,), "test"), parse_symbolic),
    )
