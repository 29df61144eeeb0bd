"""Tasks by name. A task's module is imported when the task is asked for."""

from __future__ import annotations

import difflib
import importlib

from malt_jax.errors import UserError
from malt_jax.tasks.base import Grade, Question, Task
from malt_jax.tasks.loading import check_overlap, count_duplicates

__all__ = [
    "Grade",
    "Question",
    "Task",
    "check_overlap",
    "count_duplicates",
    "get_task",
    "task_names",
]

# name -> module and function that builds the task
_BUILDERS = {
    "arithmetic": "malt_jax.tasks.embedded:task",
    "gsm8k": "malt_jax.tasks.gsm8k:task",
}
_RUNS_CODE = ("humaneval", "mbpp")


def task_names() -> list[str]:
    """Every name that `get_task` knows; `module:attribute` works beside them."""
    return [*_BUILDERS, "custom"]


def get_task(name: str, *, grader: str | None = None, allow_code: bool = False) -> Task:
    """The task called `name`.

    `custom` reads the user's own question file, graded by `grader` (`number`, `choice`, `exact`,
    `set` or `latex`); `module:attribute` imports a `Task`, or a function that returns one, from
    the user's own Python; `allow_code` lets code tasks run what the model writes.
    """
    if name == "custom":
        from malt_jax.tasks.custom import from_file

        return from_file(grader=grader)
    if grader is not None:
        raise UserError(
            f"task.grader: {grader!r} was given for task {name!r}, which has its own; "
            "leave it out, or set task.name to custom"
        )
    if ":" in name:
        from malt_jax.tasks.custom import import_task

        return import_task(name)
    if name not in _BUILDERS:
        near = difflib.get_close_matches(name, task_names(), n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UserError(
            f"task.name: no task {name!r}; {hint}choose from {', '.join(task_names())}, "
            "or give your own as module:attribute"
        )
    module, _, function = _BUILDERS[name].partition(":")
    build = getattr(importlib.import_module(module), function)
    return build(allow_code=allow_code) if name in _RUNS_CODE else build()
