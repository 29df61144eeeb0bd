"""A user's own tasks: a question file and the name of a grader, or a dozen lines of Python."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from malt_jax.errors import UserError
from malt_jax.tasks.base import Grader, Loader, Question, Task
from malt_jax.tasks.csqa import choices_of
from malt_jax.tasks.files import Row, read_rows
from malt_jax.tasks.graders import ANSWER_FORMATS, WRITTEN, get_grader
from malt_jax.tasks.loading import choose, to_questions
from malt_jax.tasks.prompts import role_templates


def from_file(grader: str = "number", **changes) -> Task:
    """A task over the user's files, columns `question` and `answer` (`id`, `choices` optional).

    Every further column goes into `meta`. `choices` is a list of texts or an object label -> text,
    listed below the question. `changes` replace fields of the `Task`.
    """
    judge = get_grader(grader)
    return _task(
        "custom", _FileLoader(judge, WRITTEN[grader]), judge, ANSWER_FORMATS[grader], changes
    )


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
    if isinstance(grader, str):
        judge, written, answer_format = get_grader(grader), WRITTEN[grader], ANSWER_FORMATS[grader]
        load = _FunctionLoader(questions, _FileLoader(judge, written))
        return _task(name, load, judge, answer_format, changes)
    load = _FunctionLoader(questions, _FileLoader(grader, None))
    return _task(name, load, grader, "End with the answer.", changes)


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


def _task(name: str, load, grader: Grader, answer_format: str, changes: Mapping) -> Task:
    answer_format = changes.get("answer_format", answer_format)
    fields = {
        "name": name,
        "description": "your own questions",
        "load": load,
        "grader": grader,
        "templates": role_templates(answer_format),
        "answer_format": answer_format,
    }
    # Templates are merged role by role; any other change replaces its field as a whole.
    fields["templates"] |= changes.get("templates", {})
    return Task(**fields | {k: v for k, v in changes.items() if k != "templates"})


@dataclass(frozen=True)
class _FileLoader:
    """Loads the user's file; `written` is the form of an answer, with a place for it."""

    grader: Grader
    written: str | None

    def __call__(self, split, path=None, limit=None, seed=None) -> list[Question]:
        if not path:
            raise UserError(f"task.{split}_path: the task `custom` needs a file; give its path")
        questions = to_questions(read_rows(path), self._parse, split)
        return choose(questions, limit, seed)

    def _parse(self, row: Row, split: str) -> Question:
        text, meta = row.text("question"), {}
        for column, value in row.values.items():
            if column == "choices" and value is not None:
                meta["choices"] = choices_of(row, value)
                text += "".join(f"\n({a}) {b}" for a, b in meta["choices"].items())
            elif column not in ("id", "question", "answer"):
                meta[column] = value
        answer = row.text("answer", numbers=True).strip()
        question = Question(row.identity(split, "id"), text, answer, meta)
        # A user's own grader may have no `check`.
        check = getattr(self.grader, "check", None)
        if check and (why := check(question)):
            raise row.fail(why, "correct the answer, or choose another task.grader")
        if self.written and not self._reads(text := self.written.format(answer), question):
            raise row.fail(
                f"the answer can't be read back: {text[:60]!r} is graded as wrong",
                "write it shorter or in other words, or choose another task.grader",
            )
        return question

    def _reads(self, text: str, question: Question) -> bool:
        """Whether the grader accepts `text`; if not, no model could answer the question."""
        return self.grader.grade([text], [question])[0].correct


@dataclass(frozen=True)
class _FunctionLoader:
    questions: Callable[[str], Iterable[tuple[str, str]]]
    rows: _FileLoader

    def __call__(self, split, path=None, limit=None, seed=None) -> list[Question]:
        if path:
            raise UserError(f"task.{split}_path: this task makes its own questions; leave it out")
        rows = [
            Row("the task's questions", f"row {i}", {"question": str(q), "answer": str(a)})
            for i, (q, a) in enumerate(self.questions(split), start=1)
        ]
        return choose(to_questions(rows, self.rows._parse, split), limit, seed)
