"""Tasks by name. A task's module is imported only when the task is used."""

from __future__ import annotations

import functools
import importlib
import tomllib
from pathlib import Path
from typing import Any

from malt_jax.checks import nearest
from malt_jax.errors import UserError
from malt_jax.tasks.base import Grade, Question, Task
from malt_jax.tasks.loading import (
    Benchmark,
    Rows,
    check_overlap,
    choose,
    count_duplicates,
    set_aside,
    without,
)

__all__ = [
    "Grade",
    "Question",
    "Task",
    "check_overlap",
    "choose",
    "count_duplicates",
    "get_task",
    "set_aside",
    "task_names",
    "without",
]

GENERATED = ("arithmetic", "triples", "parity")
"""Tasks that a small model learns in minutes; their questions are made by a program."""


@functools.cache
def _benchmarks() -> dict[str, Any]:
    path = Path(__file__).with_name("benchmarks.toml")
    return tomllib.loads(path.read_text(encoding="utf-8"))


def task_names() -> list[str]:
    """Every name that `get_task` knows; `module:attribute` works beside them."""
    return [*GENERATED, *_benchmarks()["tasks"], "logic", "custom"]


def get_task(name: str, *, grader: str | None = None, allow_code: bool = False) -> Task:
    """The task called `name`.

    `custom` reads the user's own question file, graded by `grader` (`number`, the default,
    `choice`, `exact`, `set` or `latex`). `module:attribute` imports a `Task`, or a function that
    returns one, from the user's own Python. `allow_code` lets code tasks run what the model writes.
    """
    if name == "custom":
        from malt_jax.tasks.custom import from_file

        return from_file(grader=grader or "number")
    if ":" in name:
        from malt_jax.tasks.custom import import_task

        task = import_task(name)
    elif name in (*GENERATED, "logic"):
        task = importlib.import_module(f"malt_jax.tasks.{name}").task()
    elif name in _benchmarks()["tasks"]:
        task = _benchmark(name, allow_code)
    else:
        raise UserError(
            f"task.name: no task {name!r}; choose from {', '.join(task_names())}, or give your own "
            f"as module:attribute.{nearest(name, task_names())}"
        )
    if grader is not None:
        raise UserError(
            f"task.grader: found {grader!r}, but {name!r} has a grader of its own; leave it out"
        )
    return task


def _benchmark(name: str, allow_code: bool) -> Task:
    from malt_jax.tasks.graders import benchmark_grader
    from malt_jax.tasks.prompts import role_templates

    known = _benchmarks()
    about = known["tasks"][name]
    load = Benchmark({split: Rows(**known["rows"][about[split]]) for split in ("train", "eval")})
    # Only graders of code run what a model wrote, which the user has to allow.
    settings = {"allow_code": allow_code} if about["grader"] == "code" else {}
    grader, answer_format = benchmark_grader(about["grader"], **settings)
    templates = role_templates(answer_format)
    return Task(name, about["description"], load, grader, templates, answer_format)
