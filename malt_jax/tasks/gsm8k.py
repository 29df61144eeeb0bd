"""GSM8K: grade-school word problems whose answers are numbers (arXiv 2110.14168)."""

from __future__ import annotations

from malt_jax.tasks.base import Question, Task
from malt_jax.tasks.files import Row
from malt_jax.tasks.graders import ANSWER_FORMATS
from malt_jax.tasks.graders.number import NumberGrader, value_of
from malt_jax.tasks.graders.numerals import Unreadable, canonical
from malt_jax.tasks.loading import Benchmark, Hub
from malt_jax.tasks.prompts import role_templates

TRAIN = Hub("openai/gsm8k", ("main",), "train")


def parse(row: Row, split: str) -> Question:
    """Columns `question` and `answer`; the answer is a solution that ends in `#### N`.

    The level is the number of calculations the solution marks as `<<48/2=24>>`.
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


def task() -> Task:
    answer_format = ANSWER_FORMATS["number"]
    return Task(
        name="gsm8k",
        description="grade-school word problems, numeric answers",
        load=Benchmark(
            hub={"train": TRAIN, "eval": Hub("openai/gsm8k", ("main",), "test")},
            parse={"train": parse, "eval": parse},
        ),
        grader=NumberGrader(),
        templates=role_templates(answer_format),
        answer_format=answer_format,
    )
