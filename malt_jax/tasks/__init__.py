"""Tasks by name. A task's module is imported only when the task is used."""

from __future__ import annotations

import difflib
import importlib

from malt_jax.errors import UserError
from malt_jax.tasks.base import Grade, Question, Task
from malt_jax.tasks.loading import check_overlap, choose, count_duplicates, set_aside, without

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

# name -> module, function that builds the task, its arguments
_BUILDERS: dict[str, tuple[str, str, tuple]] = {
    "arithmetic": ("arithmetic", "task", ()),
    "gsm8k": ("gsm8k", "task", ()),
    "gsm_symbolic": ("gsm8k", "symbolic", ("main",)),
    "gsm_symbolic_p1": ("gsm8k", "symbolic", ("p1",)),
    "gsm_symbolic_p2": ("gsm8k", "symbolic", ("p2",)),
    "svamp": ("svamp", "task", ()),
    "math": ("competition_math", "task", ("math",)),
    "math500": ("competition_math", "task", ("math500",)),
    "csqa": ("csqa", "task", ()),
    "strategyqa": ("strategyqa", "task", ()),
    "logic": ("logic", "task", ()),
    "humaneval": ("programs", "humaneval", ()),
    "mbpp": ("programs", "mbpp", ()),
}
_RUNS_CODE = ("humaneval", "mbpp")


def task_names() -> list[str]:
    """Every name that `get_task` knows; `module:attribute` works beside them."""
    return [*_BUILDERS, "custom"]


def get_task(name: str, *, grader: str | None = None, allow_code: bool = False) -> Task:
    """The task called `name`.

    `custom` reads the user's own question file, graded by `grader` (`number`, the default,
    `choice`, `exact`, `set` or `latex`). `module:attribute` imports a `Task`, or a function that
    returns one, from the user's own Python. `allow_code` lets code tasks run what the model writes.
    """
    if name == "custom":
        from malt_jax.tasks.custom import from_file

        return from_file(grader=grader or "number")
    task = _own(name) if ":" in name else _built_in(name, allow_code)
    if grader is not None:
        raise UserError(
            f"task.grader: found {grader!r}, but {name!r} has a grader of its own; leave it out"
        )
    return task


def _own(name: str) -> Task:
    from malt_jax.tasks.custom import import_task

    return import_task(name)


def _built_in(name: str, allow_code: bool) -> Task:
    if name not in _BUILDERS:
        near = difflib.get_close_matches(name, task_names(), n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UserError(
            f"task.name: no task {name!r}; {hint}choose from {', '.join(task_names())}, "
            "or give your own as module:attribute"
        )
    module, function, arguments = _BUILDERS[name]
    build = getattr(importlib.import_module(f"malt_jax.tasks.{module}"), function)
    return build(allow_code=allow_code) if name in _RUNS_CODE else build(*arguments)
