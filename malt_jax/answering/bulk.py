"""Answers in bulk: a file of questions in, a file of answers out, continued where it stopped.

    {"id": "q1", "question": "..."}        one line of the input; `id` may be left out
    {"id": "q1", "question": "...", "answer": "...", "votes": [...], "draws": [[turn, ...], ...],
     "calls": 9, "tokens": 512, "made_with": "..."}            the same line of the output

Only where there is one, a line has an `error`, a `tie`, or the characters that are `unread`.

Line n of the output answers line n of the input. Both are read line by line and never held whole.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from malt_jax.answering.turns import Answer
from malt_jax.checks import has_lone_surrogate, show
from malt_jax.errors import UserError
from malt_jax.memory import release_freed
from malt_jax.regular_files import open_regular
from malt_jax.storage.atomic import explained
from malt_jax.storage.jsonl import append_lines, read_lines, recover
from malt_jax.storage.signals import raise_if_stopped
from malt_jax.tasks.files import json_object, refuse_other_content

MAX_LINE = 1 << 20
"""The longest line in bytes: no question is a megabyte of text."""
NEEDED = ("id", "question", "made_with")
"""Fields without which a line of the output is no answer."""
FIRST_BYTES = b'{"id":'
"""How every line of the output begins."""


@dataclass(frozen=True)
class Line:
    """A question of the input."""

    number: int
    id: str | int
    question: str


def read_questions(path: Path) -> Iterator[Line]:
    """Yields the questions of a file; a malformed line raises UserError that names it.

    Empty lines at the end are no questions.
    """
    empty: int | None = None
    with open(open_regular(path, os.O_RDONLY), "rb") as file:
        refuse_other_content(path)
        for number in itertools.count(1):
            raw = file.readline(MAX_LINE + 1)
            if not raw:
                return
            if not raw.strip():
                empty = empty or number
                continue
            if empty:
                raise UserError(f"{path}:{empty}: an empty line is no JSON; remove it.")
            yield _question(raw, number, f"{path}:{number}")


def _question(raw: bytes, number: int, place: str) -> Line:
    if len(raw) > MAX_LINE:
        raise UserError(f"{place}: longer than {MAX_LINE:,} bytes; shorten the question.")
    record = json_object(raw, place)
    if "question" not in record:
        meant = get_close_matches("question", list(record), 1, 0.5)
        hint = f" Rename {show(meant[0])} to `question`." if meant else ""
        found = ", ".join(map(show, record)) or "nothing"
        raise UserError(f"{place}: no `question`; found {found}.{hint}")
    question, identity = record["question"], record.get("id")
    if not isinstance(question, str) or not question.strip():
        raise UserError(f"{place}: `question` is {show(question)}, expected a text.")
    if has_lone_surrogate(question):
        raise UserError(
            f"{place}: `question` holds half a character (a lone surrogate); write it whole."
        )
    if isinstance(identity, bool) or not isinstance(identity, str | int | None):
        raise UserError(f"{place}: `id` is {show(identity)}, expected a text or a whole number.")
    return Line(number, str(number) if identity is None else identity, question)


def check_questions(path: Path) -> int:
    """Reads the whole file before any work begins, and returns the number of its questions.

    One that leaves a prompt no room is no fault of the file: its answer has an `error`.
    """
    seen: dict[int, int] = {}
    count = 0
    for line in read_questions(path):
        # Hashes and no texts, so that memory stays small.
        earlier = seen.setdefault(hash(str(line.id)), line.number)
        if earlier != line.number:
            raise UserError(
                f"{path}:{line.number}: the id {show(line.id)} is already on line {earlier}; "
                "give each question its own, or none at all: a line without one is called by its "
                "number."
            )
        count = line.number
    if not count:
        raise UserError(f"{path}: found no question; at least one is needed.")
    return count


@contextmanager
def only_writer(path: Path) -> Iterator[None]:
    """Creates the output if it is missing, and keeps every other process from writing it."""
    with explained(path), open(open_regular(path, os.O_RDWR | os.O_CREAT), "r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(
                f"{path}: another process is writing it; wait for it or choose another --output."
            ) from None
        yield


@dataclass
class Count:
    """Answers, and what the command says of them at its end."""

    answers: int = 0
    failed: int = 0
    """Questions that could not be answered."""
    unread: int = 0
    """Questions with characters that the model has no token for."""

    def add(self, record: dict[str, Any]) -> None:
        """Counts a line of the output."""
        self.answers += 1
        self.failed += "error" in record
        self.unread += "unread" in record


def answered(path: Path, questions: Path, made_with: str) -> Count:
    """The answers that the output holds already.

    A torn last line is dropped, and one that lacks only its newline gets it.

    Raises UserError unless they answer the first questions of the input, made the same way; then
    the file stays as it is.
    """
    if not _begins_as_output(path):
        raise UserError(
            f"--output: {path} holds something other than answers; choose another file."
        )
    count = Count()
    records = read_lines(path, needs=NEEDED, torn=True)
    # The input may be longer than the output; a longer output answers another input.
    for record, line in itertools.zip_longest(records, read_questions(questions)):
        if record is None:
            break
        here = f"{path}:{count.answers + 1}"
        # As texts, as which earlier versions wrote numbers.
        same = line and str(record["id"]) == str(line.id) and record["question"] == line.question
        if not same:
            raise UserError(
                f"{here}: answers another question than line {count.answers + 1} of {questions}; "
                "choose another --output."
            )
        if record["made_with"] != made_with:
            raise UserError(
                f"{here}: was answered by another run, or with another --votes or --seed; choose "
                "another --output."
            )
        count.add(record)
    # Not before: what belongs to other settings is not ours to repair.
    recover(path, keep_whole=True)
    return count


def _begins_as_output(path: Path) -> bool:
    """Whether the file is empty, or its first line is an answer or the torn beginning of one."""
    with open(open_regular(path, os.O_RDONLY), "rb") as file:
        first = file.readline()
    try:
        record = json.loads(first)
    except (ValueError, RecursionError):
        start = FIRST_BYTES[: len(first)]
        return not first.endswith(b"\n") and first[: len(start)] == start
    return isinstance(record, dict) and all(field in record for field in NEEDED)


def write_answers(
    lines: Iterable[Line],
    answer: Callable[[list[str]], Iterable[Answer]],
    output: Path,
    made_with: str,
    block: int,
    on_block: Callable[[int], None],
    unread: Callable[[str], list[str]],
    count: Count,
) -> None:
    """Appends the answers block by block, and adds them to the `count`.

    A block is written as a whole; a stop request takes effect after it. `unread`: the characters
    of a question that the model has no token for.
    """
    lines = iter(lines)
    while some := list(itertools.islice(lines, block)):
        answers = list(answer([line.question for line in some]))
        pairs = zip(some, answers, strict=True)
        records = [to_record(line, one, made_with, unread(line.question)) for line, one in pairs]
        append_lines(output, records)
        release_freed()
        for record in records:
            count.add(record)
        on_block(some[-1].number)
        raise_if_stopped()


def to_record(
    line: Line, answer: Answer, made_with: str, unread: Sequence[str] = ()
) -> dict[str, Any]:
    """One line of the output."""
    turns = [turn for draw in answer.draws for turn in draw]
    return {
        "id": line.id,
        "question": line.question,
        "answer": answer.prediction,
        **({"error": answer.error} if answer.error else {}),
        **({"tie": True} if answer.tie else {}),
        **({"unread": [*unread]} if unread else {}),
        "text": answer.text,
        "votes": list(answer.votes),
        "winner": answer.winner,
        "draws": [[turn.to_record() for turn in draw] for draw in answer.draws],
        "calls": len(turns),
        "tokens": sum(turn.tokens for turn in turns),
        "made_with": made_with,
    }
