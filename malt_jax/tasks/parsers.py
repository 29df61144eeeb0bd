"""From a row in a benchmark's published columns to a question; `programs` has those of code.

A parser is called as `parse(row, split)`. It raises `UserError` for a row that it cannot use.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from malt_jax.checks import show
from malt_jax.tasks.base import Question
from malt_jax.tasks.files import Row
from malt_jax.tasks.graders.latex import MAX_LENGTH
from malt_jax.tasks.graders.number import value_of
from malt_jax.tasks.graders.numerals import Unreadable, canonical
from malt_jax.tasks.graders.statements import boxes


def gsm8k(row: Row, split: str) -> Question:
    """GSM8K (arXiv 2110.14168): `question`, and `answer`, a solution that ends in `#### N`.

    The level is the number of calculations that the solution marks as `<<48/2=24>>`.
    """
    solution = row.text("answer")
    _, marker, last = solution.rpartition("####")
    if not marker:
        raise row.fail("`answer` holds no `####`", "end the solution with a line `#### 42`")
    answer = _number(row, last, "what follows `####`", "write `#### 42`")
    steps = solution.count("<<")
    meta = {"level": f"{steps} step{'s' * (steps > 1)}"} if steps else {}
    return Question(row.identity(split, "id"), row.text("question"), answer, meta)


def gsm_symbolic(row: Row, split: str) -> Question:
    """GSM-Symbolic (arXiv 2410.05229): GSM8K's columns, `id` of the template and `instance`."""
    question = gsm8k(row, split)
    if not row.has("instance"):
        return question
    # The id repeats in every draw of a template, so only both together name a question.
    template, instance = row.identity(split, "id"), row.identity(split, "instance")
    meta = {**question.meta, "cluster": template}
    return replace(question, id=f"{template}-{instance}", meta=meta)


def svamp(row: Row, split: str) -> Question:
    """SVAMP (arXiv 2103.07191): the hub's `ID`, `Body`, `Question` and on, or `id`, `question`."""
    if row.has("Body") and not row.has("question_concat"):
        text = f"{row.text('Body').strip()} {row.text('Question').strip()}"
    else:
        text = row.text("question_concat", "question")
    written = row.text("Answer", "answer", numbers=True)
    answer = _number(row, written, "the answer", "give it in figures")
    meta = {"subject": row.text("Type")} if row.has("Type") else {}
    return Question(row.identity(split, "ID", "id"), text.strip(), answer, meta)


def _number(row: Row, written: str, what: str, advice: str) -> str:
    try:
        return canonical(value_of(written))
    except Unreadable as reason:
        raise row.fail(f"{what} is not one number ({reason})", advice) from None


def competition_math(row: Row, split: str) -> Question:
    r"""MATH and MATH-500 (arXiv 2103.03874, 2305.20050).

    Columns `problem` or `question`, and `answer` or `solution`, with `level` and `subject`. The
    answer is bare LaTeX or a solution with a last `\boxed{}`; two published solutions end with an
    empty box.
    """
    column, _ = row.get("answer", "solution")
    text = row.text(column, numbers=True).strip()
    boxed = boxes(text)
    # The last box is the answer. A `solution` without a box has none, and an `answer` without one
    # is taken as it is.
    answer = boxed[-1].span if boxed else "" if column == "solution" else text
    if not answer or len(answer) > MAX_LENGTH:
        raise row.fail(
            f"`{column}` holds no final answer", r"end it with \boxed{42} or give the answer alone"
        )
    meta = {}
    if row.has("level"):
        level = row.text("level", numbers=True).strip()
        meta["level"] = level.removeprefix("Level ").strip()
    if row.has("subject") or row.has("type"):
        meta["subject"] = row.text("subject", "type")
    text = row.text("problem", "question")
    return Question(row.identity(split, "unique_id", "id"), text, answer, meta)


def csqa(row: Row, split: str) -> Question:
    """CommonsenseQA (arXiv 1811.00937): the original's nested `question`, or the hub's flat one.

    The label of the right choice is `answerKey`.
    """
    _, nested = row.get("question")
    inner = Row(row.file, row.place, nested) if isinstance(nested, dict) else row
    stem = inner.text("stem" if inner is not row else "question")
    choices = choices_of(row, inner.get("choices")[1])
    _, key = row.get("answerKey")
    if not isinstance(key, str) or key.strip() not in choices:
        found = "empty" if key in ("", None) else show(key)
        raise row.fail(f"`answerKey` is {found}", f"give one of {', '.join(choices)}")
    text = stem + listed(choices)
    return Question(row.identity(split, "id"), text, key.strip(), {"choices": choices})


def choices_of(row: Row, value: Any) -> dict[str, str]:
    """`[{label, text}, ...]`, `{label: [...], text: [...]}`, `{A: ...}` or texts -> label: text."""
    pairs: list[tuple[Any, Any]] = []
    if isinstance(value, dict) and set(value) == {"label", "text"}:
        labels, texts = value["label"], value["text"]
        if isinstance(labels, list) and isinstance(texts, list) and len(labels) == len(texts):
            pairs = list(zip(labels, texts, strict=True))
    elif isinstance(value, dict):
        pairs = list(value.items())
    elif isinstance(value, list) and all(isinstance(item, dict) for item in value):
        pairs = [(item.get("label"), item.get("text")) for item in value]
    elif isinstance(value, list):
        pairs = [(chr(ord("A") + i), item) for i, item in enumerate(value)]
    good = all(isinstance(part, str) and part.strip() for pair in pairs for part in pair)
    choices = dict(pairs) if good else {}
    # Labels that differ in case at most are one label, so there are fewer of them than pairs.
    if not 2 <= len(choices) <= 26 or len({label.casefold() for label in choices}) < len(pairs):
        raise row.fail(
            "`choices` is not 2 to 26 labelled texts",
            'write {"label": ["A", "B"], "text": ["red", "blue"]}',
        )
    return {row.clean("choices", a): row.clean("choices", b) for a, b in choices.items()}


def listed_choices(text: str) -> dict[str, dict[str, str]]:
    """`meta` of a question whose text lists its choices as `listed` writes them."""
    choices = dict(re.findall(r"^\(([A-Z])\) (.+)$", text, re.MULTILINE))
    return {"choices": choices} if len(choices) > 1 else {}


def listed(choices: dict[str, str]) -> str:
    """The choices as lines below a question."""
    return "".join(f"\n({label}) {text}" for label, text in choices.items())


def strategyqa(row: Row, split: str) -> Question:
    """StrategyQA (arXiv 2101.02235): `question`, and `answer`, true, false, yes or no."""
    _, answer = row.get("answer")
    words = {"yes": "yes", "true": "yes", "no": "no", "false": "no"}
    word = words.get(str(answer).strip().lower()) if isinstance(answer, bool | str) else None
    if word is None:
        raise row.fail("`answer` is not true or false", "write true, false, yes or no")
    return Question(row.identity(split, "qid", "id"), row.text("question"), word)
