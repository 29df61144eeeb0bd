"""A user's own tasks: a question file and the name of a grader, or a dozen lines of Python."""

from __future__ import annotations

import importlib
import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import date
from decimal import Decimal
from numbers import Number
from pathlib import Path
from typing import Any

from malt_jax.checks import show
from malt_jax.errors import UserError
from malt_jax.tasks.base import Grade, Grader, Loader, Question, Task, read_answer
from malt_jax.tasks.files import Row, read_rows
from malt_jax.tasks.graders import ANSWER_FORMATS, WRITTEN, get_grader
from malt_jax.tasks.loading import choose, to_questions
from malt_jax.tasks.parsers import choices_of, listed
from malt_jax.tasks.prompts import role_templates

Pairs = Callable[[str], Iterable[tuple[str, str]]]  # split -> (question, answer) pairs


def from_file(grader: str = "number", **changes) -> Task:
    """A task over the user's files, columns `question` and `answer` (`id`, `choices` optional).

    Every further column goes into `meta`; questions of one `cluster` are not independent, which the
    intervals take into account. `choices` is a list of texts or an object label -> text, listed
    below the question. `changes` replace fields of the `Task`.
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
    if not isinstance(task.grader, Grader):
        raise UserError(
            f"task.name: the grader of {place!r} is a {type(task.grader).__name__}; a grader has "
            "`extract` and `grade` (see malt_jax.tasks.base.Grader)"
        )
    grader = _OwnGrader(place, task.grader)
    return replace(task, load=_OwnLoader(place, task.load), grader=grader)


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
        known = set[str]()
        for question in questions:
            texts = (question.id, question.text, question.answer)
            good = all(isinstance(text, str) for text in texts)
            if not good or not question.id.strip() or "/" in question.id or question.id in known:
                raise UserError(
                    f"task.name: {self.place!r} loads a question with id {show(question.id)}; "
                    "id, text and answer are texts, and an id comes once and holds no slash"
                )
            known.add(question.id)
            _plain(Row(self.place, question.id, {}), "meta", dict(question.meta))
        return questions


@dataclass(frozen=True)
class _OwnGrader:
    """The user's own grader; its errors, which come after hours of sampling, name its place."""

    place: str
    grader: Grader

    def extract(self, text: str, question: Question | None = None) -> str | None:
        with self._explained():
            asked = question or Question("", "", "")
            return read_answer(self.grader, text, asked)

    def grade(self, texts: Sequence[str], questions: Sequence[Question]) -> list[Grade]:
        with self._explained():
            grades = [*self.grader.grade(texts, questions)]
        if len(grades) != len(texts) or not all(isinstance(grade, Grade) for grade in grades):
            raise UserError(
                f"task.name: the grader of {self.place!r} was given {len(texts)} texts and "
                f"returned {len(grades)} grades; it returns one Grade for each"
            )
        return grades

    def check(self, question: Question) -> str | None:
        # A user's own grader may have no `check`.
        check = getattr(self.grader, "check", None)
        return check(question) if check else None

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except (Exception, SystemExit) as error:
            raise UserError(
                f"task.name: the grader of {self.place!r} raised {type(error).__name__}: {error}"
            ) from error


def _row(number: int, pair: Any) -> Row:
    """One (question, answer) of the user's function as a row."""
    if (
        not isinstance(pair, tuple | list)
        or len(pair) != 2
        or not isinstance(pair[0], str)
        or isinstance(pair[1], bool)
        or not isinstance(pair[1], str | Number | Decimal)
        or pair[1] != pair[1]  # NaN
    ):
        raise TypeError(
            f"question {number} is {show(pair)}; give pairs (question, answer), a text and a text "
            "or number"
        )
    values = {"question": pair[0], "answer": str(pair[1])}
    return Row("the task's questions", f"row {number}", values)


def _from_json(value: Any) -> Any:
    """A value that a file without lists spells as JSON; any other one as it is."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value) if value.strip() else None
    except ValueError:
        return value


def _plain(row: Row, column: str, value: Any) -> Any:
    """A value of a column as JSON has it, in which the trees keep the questions' data."""
    if isinstance(value, float) and math.isnan(value):  # how some files write that there is none
        return None
    if isinstance(value, date | Decimal):
        return str(value)
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise row.fail(f"`{column}` holds what JSON cannot: {error}", "write it as text") from None
    return value


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
            rows = [_row(i, pair) for i, pair in enumerate(self.questions(split), start=1)]
        return choose(to_questions(rows, self._parse, split), limit, seed)

    def _parse(self, row: Row, split: str) -> Question:
        text, meta = row.text("question"), {}
        for column, value in row.values.items():
            if column == "choices":
                # A CSV file has a text here, and an empty one where a question has no choices.
                if given := _from_json(value):
                    meta["choices"] = choices_of(row, given)
                    text += listed(meta["choices"])
            elif column not in ("id", "question", "answer"):
                meta[column] = _plain(row, column, value)
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
