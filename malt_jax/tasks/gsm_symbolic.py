"""GSM-Symbolic: GSM8K test problems with names and numbers redrawn (arXiv 2410.05229).

Made for measuring: the train split is GSM8K's, as published. `p1` and `p2` add one and two clauses.
"""

from __future__ import annotations

from dataclasses import replace

from malt_jax.tasks import gsm8k
from malt_jax.tasks.base import Question, Task
from malt_jax.tasks.files import Row
from malt_jax.tasks.loading import Benchmark, Hub

VARIANTS = {
    "main": "GSM8K test problems redrawn",
    "p1": "GSM8K test problems redrawn, one clause more",
    "p2": "GSM8K test problems redrawn, two clauses more",
}


def parse(row: Row, split: str) -> Question:
    """GSM8K's columns; `id` numbers the template and `instance` the draw from it."""
    question = gsm8k.parse(row, split)
    if not row.has("instance"):
        return question
    template, instance = row.identity(split, "id"), row.identity(split, "instance")
    meta = {**question.meta, "template": template, "instance": instance}
    return replace(question, id=f"{template}-{instance}", meta=meta)


def task(variant: str) -> Task:
    hub = {"train": gsm8k.TRAIN, "eval": Hub("apple/GSM-Symbolic", (variant,), "test")}
    return replace(
        gsm8k.task(),
        name="gsm_symbolic" if variant == "main" else f"gsm_symbolic_{variant}",
        description=VARIANTS[variant],
        load=Benchmark(hub=hub, parse={"train": gsm8k.parse, "eval": parse}),
    )
