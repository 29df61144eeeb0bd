"""StrategyQA: yes/no questions whose steps are not in the question (arXiv 2101.02235)."""

from __future__ import annotations

from malt_jax.tasks.base import Question, Task
from malt_jax.tasks.files import Row
from malt_jax.tasks.graders.choice import ChoiceGrader
from malt_jax.tasks.loading import Hub, benchmark

ANSWER_FORMAT = 'End with "The answer is" and then yes or no.'
HUB = "ChilleD/StrategyQA"
_WORDS = {"yes": "yes", "true": "yes", "no": "no", "false": "no"}


def parse(row: Row, split: str) -> Question:
    """Columns `question` and `answer`, the latter true/false or the word yes or no."""
    _, answer = row.get("answer")
    word = _WORDS.get(str(answer).strip().lower()) if isinstance(answer, bool | str) else None
    if word is None:
        raise row.fail("`answer` is not true or false", "write true, false, yes or no")
    return Question(row.identity(split, "qid", "id"), row.text("question"), word)


def task() -> Task:
    return benchmark(
        "strategyqa",
        "yes/no questions that take several steps",
        ChoiceGrader(choices={"yes": "", "no": ""}, aliases={"true": "yes", "false": "no"}),
        ANSWER_FORMAT,
        train=(Hub(HUB, (None,), "train"), parse),
        evaluation=(Hub(HUB, (None,), "test"), parse),
    )
