r"""MATH and MATH-500: competition problems with LaTeX answers (arXiv 2103.03874, 2305.20050)."""

from __future__ import annotations

from malt_jax.tasks.base import Question, Task
from malt_jax.tasks.files import Row
from malt_jax.tasks.graders import ANSWER_FORMATS
from malt_jax.tasks.graders.latex import MAX_LENGTH, LatexGrader
from malt_jax.tasks.graders.statements import boxes
from malt_jax.tasks.loading import Hub, Unusable, benchmark

SUBJECTS = (
    "algebra", "counting_and_probability", "geometry", "intermediate_algebra", "number_theory",
    "prealgebra", "precalculus",
)  # fmt: skip
MATH = "EleutherAI/hendrycks_math"
EVALUATION = {
    "math": (Hub(MATH, SUBJECTS, "test"), "competition mathematics, LaTeX answers"),
    "math500": (
        Hub("HuggingFaceH4/MATH-500", (None,), "test"),
        "500 problems of MATH's test split",
    ),
}


def parse(row: Row, split: str) -> Question:
    r"""Columns `problem` or `question`, and `answer` or `solution`, with `level` and `subject`.

    The answer is bare LaTeX or a solution with a last `\boxed{}`. Rows without one
    are left out: two published solutions end with an empty box.
    """
    column, _ = row.get("answer", "solution")
    text = row.text(column, numbers=True).strip()
    boxed = boxes(text)
    # The last box is the answer. A `solution` without a box has none, and an `answer` without one
    # is taken as it is.
    answer = boxed[-1].span if boxed else "" if column == "solution" else text
    if not answer or len(answer) > MAX_LENGTH:
        raise Unusable.of(
            row,
            f"`{column}` holds no final answer",
            r"end it with \boxed{42} or give the answer alone",
        )
    meta = {}
    if row.has("level"):
        level = row.text("level", numbers=True).strip()
        meta["level"] = level.removeprefix("Level ").strip()
    if row.has("subject") or row.has("type"):
        meta["subject"] = row.text("subject", "type")
    text = row.text("problem", "question")
    return Question(row.identity(split, "unique_id", "id"), text, answer, meta)


def task(name: str) -> Task:
    place, description = EVALUATION[name]
    return benchmark(
        name,
        description,
        LatexGrader(),
        ANSWER_FORMATS["latex"],
        train=(Hub(MATH, SUBJECTS, "train"), parse),
        evaluation=(place, parse),
    )
