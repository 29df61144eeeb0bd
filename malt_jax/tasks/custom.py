"""A user's own tasks: a question file and the name of a grader, or a dozen lines of Python."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from malt_jax.errors import UserError
from malt_jax.tasks.base import Grader, Loader, Question, Task
from malt_jax.tasks.files import Row, read_rows
from malt_jax.tasks.graders import ANSWER_FORMATS, WRITTEN, get_grader
from malt_jax.tasks.loading import choose, to_questions
from malt_jax.tasks.parsers import choices_of, listed
from malt_jax.tasks.prompts import role_templates

Pairs = Callable[[str], Iterable[tuple[str, str]]]  # split -> (question, answer) pairs


def from_file(grader: str = "number", **changes) -> Task:
    """A task over the user's files, columns `question` and `answer` (`id`, `choices` optional).

    Every further column goes into `meta`. `choices` is a list of texts or an object label -> text,
    listed below the question. `changes` replace fields of the `Task`.
    """
    return _task(changes.pop("name", "custom"), None, grader, changes)


def from_function(
    name: str,
    questions: Callable[[str], Iterable[tuple[str, str]]],
    grader: str | Grader = "number",
    **changes,
) -> Task:
    """A task from a function: `questions(split)` gives (question, answer) pairs.

    `split` is "train" or "eval". `grader` is a grader's name, or an object with `extract` and
    `grade`; for the latter give `answer_format` too. `changes` replace fields of the `Task`.
    """
    return _task(name, questions, grader, changes)


def import_task(place: str) -> Task:
    """The `Task` at `module:attribute`, or what the function there returns."""
    found = import_attribute(place, "task.name")
    try:
        task = found() if callable(found) else found
    except (Exception, SystemExit) as error:  # the user's function as well
        raise UserError(f"task.name: {place!r} raised {type(error).__name__}: {error}") from error
    if not isinstance(task, Task):
        raise UserError(f"task.name: {place!r} is a {type(found).__name__}; it must be a Task")
    return replace(task, load=_OwnLoader(place, task.load))


def import_attribute(place: str, field: str) -> Any:
    """What stands at `module:attribute`; an error names the config field that asked for it."""
    module, _, attribute = place.partition(":")
    folder, top = os.getcwd(), module.partition(".")[0]
    # A module of the user's may have the name of a standard one, and then the user's is meant.
    own = Path(folder, f"{top}.py").is_file() or Path(folder, top).is_dir()
    if top in sys.stdlib_module_names and not own:  # `sys:exit`, `os:abort`
        raise UserError(f"{field}: {place!r} is Python's own; give a module of yours")
    if folder not in sys.path:
        sys.path.insert(0, folder)  # the user's module is next to the user's config
    try:
        return getattr(importlib.import_module(module), attribute)
    except (Exception, SystemExit) as error:  # the user's module: whatever it raises
        raise UserError(
            f"{field}: {place!r} can't be imported ({type(error).__name__}: {error}); "
            "give module:attribute of a Python module in the current folder or installed"
        ) from error


@dataclass(frozen=True)
class _OwnLoader:
    """The loader in the user's own code; its errors name the `module:attribute` it came from."""

    place: str
    load: Loader

    def __call__(self, split, path=None, limit=None, seed=None) -> list[Question]:
        try:
            questions = [*self.load(split, path, limit, seed)]
        except UserError:
            raise
        except (Exception, SystemExit) as error:
            raise UserError(
                f"task.name: the questions of {self.place!r}: {type(error).__name__}: {error}"
            ) from error
        if not all(isinstance(question, Question) for question in questions):
            raise UserError(f"task.name: {self.place!r} must load questions, each a Question")
        return questions


def _task(
    name: str, questions: Pairs | None, grader: str | Grader, changes: dict[str, Any]
) -> Task:
    """A task over the questions of a function, or without one over those of the user's files."""
    written, answer_format = None, "End with the answer."
    if isinstance(grader, str):
        written, answer_format = WRITTEN.get(grader), ANSWER_FORMATS.get(grader, "")
        grader = get_grader(grader)
    answer_format = changes.get("answer_format", answer_format)
    fields = {
        "name": name,
        "description": "your own questions",
        "load": _OwnRows(grader, written, questions),
        "grader": grader,
        # Templates are merged role by role; any other change replaces its field as a whole.
        "templates": role_templates(answer_format) | changes.pop("templates", {}),
        "answer_format": answer_format,
    }
    return Task(**fields | changes)


@dataclass(frozen=True)
class _OwnRows:
    """Loads the user's file or calls the user's function.

    `written` is the form of an answer, with a place for it.
    """

    grader: Grader
    written: str | None
    questions: Pairs | None

    def __call__(self, split, path=None, limit=None, seed=None) -> list[Question]:
        if self.questions is None:
            if not path:
                raise UserError(f"task.{split}_path: the task `custom` needs a file; give its path")
            rows = read_rows(path)
        elif path:
            raise UserError(f"task.{split}_path: this task makes its own questions; leave it out")
        else:
            rows = [
                Row("the task's questions", f"row {i}", {"question": str(q), "answer": str(a)})
                for i, (q, a) in enumerate(self.questions(split), start=1)
            ]
        return choose(to_questions(rows, self._parse, split), limit, seed)

    def _parse(self, row: Row, split: str) -> Question:
        text, meta = row.text("question"), {}
        for column, value in row.values.items():
            if column == "choices" and value is not None:
                meta["choices"] = choices_of(row, value)
                text += listed(meta["choices"])
            elif column not in ("id", "question", "answer"):
                meta[column] = value
        answer = row.text("answer", numbers=True).strip()
        question = Question(row.identity(split, "id"), text, answer, meta)
        # A user's own grader may have no `check`.
        check = getattr(self.grader, "check", None)
        if check and (why := check(question)):
            raise row.fail(why, "correct the answer, or choose another task.grader")
        # If the grader does not accept the reference itself, no model could answer the question.
        text = self.written.format(answer) if self.written else ""
        if self.written and not self.grader.grade([text], [question])[0].correct:
            raise row.fail(
                f"the answer can't be read back: {text[:60]!r} is graded as wrong",
                "write it shorter or in other words, or choose another task.grader",
            )
        return question
