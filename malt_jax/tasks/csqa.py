"""CommonsenseQA: five choices, one right (arXiv 1811.00937)."""

from __future__ import annotations

from typing import Any

from malt_jax.checks import show
from malt_jax.tasks.base import Question, Task
from malt_jax.tasks.files import Row
from malt_jax.tasks.graders import ANSWER_FORMATS
from malt_jax.tasks.graders.choice import ChoiceGrader
from malt_jax.tasks.loading import Hub, Unusable, benchmark

HUB = "tau/commonsense_qa"


def parse(row: Row, split: str) -> Question:
    """Both layouts: the original's nested `question.stem`, `question.choices`, the hub's flat one.

    The label of the right choice is `answerKey`.
    """
    _, nested = row.get("question")
    if isinstance(nested, dict):
        inner = Row(row.file, row.place, nested)
        stem, choices = inner.text("stem"), choices_of(row, inner.get("choices")[1])
    else:
        stem, choices = row.text("question"), choices_of(row, row.get("choices")[1])
    _, key = row.get("answerKey")
    if not isinstance(key, str) or key.strip() not in choices:
        found = "empty" if key in ("", None) else show(key)
        raise Unusable.of(row, f"`answerKey` is {found}", f"give one of {', '.join(choices)}")
    listed = "".join(f"\n({label}) {text}" for label, text in choices.items())
    return Question(row.identity(split, "id"), stem + listed, key.strip(), {"choices": choices})


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
    # A label that appears twice makes the mapping shorter than the list of pairs.
    if not 2 <= len(choices) <= 26 or len(choices) < len(pairs):
        raise row.fail(
            "`choices` is not 2 to 26 labelled texts",
            'write {"label": ["A", "B"], "text": ["red", "blue"]}',
        )
    return {row.clean("choices", a): row.clean("choices", b) for a, b in choices.items()}


def task() -> Task:
    return benchmark(
        "csqa",
        "common sense, five choices",
        ChoiceGrader(),
        ANSWER_FORMATS["choice"],
        train=(Hub(HUB, (None,), "train"), parse),
        evaluation=(Hub(HUB, (None,), "validation"), parse),
    )
