"""Loading benchmarks: from rows of local files or of the hub to questions."""

from __future__ import annotations

import hashlib
import importlib
import logging
import random
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from malt_jax.errors import HubError, UserError
from malt_jax.tasks.base import Question
from malt_jax.tasks.files import Row, read_rows
from malt_jax.tasks.graders.languages import unread

log = logging.getLogger(__name__)
NAMED = 100
"""Rows that were left out and that a message names."""

Parse = Callable[[Row, str], Question]  # (row, split) -> question; raises UserError


@dataclass(frozen=True)
class Rows:
    """One split on the hub: the data set, its configurations (joined in order), the split.

    parser: the function that reads a row, as MODULE.NAME of this folder.
    """

    parser: str
    repo: str
    split: str
    configs: Sequence[str | None] = (None,)

    @property
    def parse(self) -> Parse:
        module, _, name = self.parser.partition(".")
        return getattr(importlib.import_module(f"malt_jax.tasks.{module}"), name)


@dataclass(frozen=True)
class Benchmark:
    """The loader of a published benchmark.

    Called as `load(split, path, limit, seed)`. With `path` it reads that file and never uses the
    network; without one it asks the hub through `datasets`. A row that cannot be used is left out.
    """

    splits: Mapping[str, Rows]

    def __call__(
        self,
        split: str,
        path: str | None = None,
        limit: int | None = None,
        seed: int | None = None,
    ) -> list[Question]:
        if split not in self.splits:
            raise UserError(f"no split {split!r}; choose from {', '.join(self.splits)}")
        source = self.splits[split]
        rows = _hub_rows(source, split) if path is None else read_rows(path)
        return choose(to_questions(rows, source.parse, split, leave_out=True), limit, seed)


def to_questions(
    rows: Iterable[Row], parse: Parse, split: str, *, leave_out: bool = False
) -> list[Question]:
    """Parses every row and refuses an id that appears twice.

    A row that cannot be used is refused, or with `leave_out` left out; if none is usable, the first
    one's error is raised. The log names what a user should know: rows that are left out, texts that
    appear twice, and a language in which answers are not recognised.
    """
    questions: list[Question] = []
    unusable: list[UserError] = []
    first: dict[str, tuple[Row, Question]] = {}
    for row in rows:
        try:
            question = parse(row, split)
        except UserError as error:
            if not leave_out:
                raise
            unusable.append(error)
            continue
        if question.id in first:
            other, same = first[question.id]
            what = "this question" if question.text == same.text else f"the id {question.id!r}"
            twice = row.fail(
                f"{what} is already at {other.place}",
                "leave one out, or give each question its own id",
            )
            if not leave_out:
                raise twice
            unusable.append(twice)
            continue
        first[question.id] = row, question
        questions.append(question)
    if unusable and not questions:
        raise unusable[0]
    if unusable:
        named = "; ".join(map(str, unusable[:NAMED])) + "; ..." * (len(unusable) > NAMED)
        log.warning("%s split: %d rows left out: %s", split, len(unusable), named)
    if repeated := count_duplicates(questions):
        log.warning("%s split: %d questions repeat the text of another", split, repeated)
    if unread(question.text for question in questions):
        log.warning(
            "%s split: answers announced in the questions' language are not recognised; "
            r"only #### x, \boxed{x}, English forms and a number at the end count", split
        )  # fmt: skip
    return questions


def choose(questions: Sequence[Question], limit: int | None, seed: int | None) -> list[Question]:
    """`limit` questions in file order: the first ones, or with a seed a random sample.

    Samples with one seed are nested: a sample of 100 is part of the sample of 200.
    """
    if limit is None:
        return list(questions)
    if not 0 < limit <= len(questions):
        raise UserError(
            f"{limit} questions asked for by the config's or a flag's task.num_train or "
            f"task.num_eval, the data holds {len(questions)}; ask for 1 to {len(questions)}, or "
            "set it to null to have all"
        )
    # The shuffle depends only on the seed and the number of questions. A sample is the first
    # `limit` of it, so samples are nested; sorting brings back the order of the file.
    order = list(range(len(questions)))
    if seed is not None:
        random.Random(seed).shuffle(order)
    return [questions[i] for i in sorted(order[:limit])]


def set_aside(questions: Sequence[Question], count: int) -> list[Question]:
    """A validation set: `count` of the questions, each text once, in their order.

    A hash of its text decides, so neither a seed nor the order of the file moves a question.
    """
    first = {normalised(question.text): question for question in reversed(questions)}
    if count >= len(first):
        raise UserError(
            f"{count} questions to set aside of {len(first)} different ones in the training split, "
            "so none is left to train on; lower task.num_validation"
        )
    chosen = sorted(first, key=_text_hash)[:count]
    ids = {first[text].id for text in chosen}
    return [question for question in questions if question.id in ids]


def without(questions: Sequence[Question], aside: Sequence[Question]) -> list[Question]:
    """The questions whose text is that of none of `aside`."""
    texts = {normalised(question.text) for question in aside}
    return [question for question in questions if normalised(question.text) not in texts]


def _text_hash(text: str) -> bytes:
    # A lone surrogate has no UTF-8; it is written out instead.
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).digest()


def normalised(text: str) -> str:
    """Text for comparison: NFKC, with case folded and blanks collapsed.

    Digits above and below the line keep their place: 5² is not 52.
    """
    if not text.isascii():
        text = "".join(_MARKS.get(unicodedata.decomposition(c)[:5], "") + c for c in text)
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


_MARKS = {"<supe": "^", "<sub>": "_"}
"""By how Unicode's decomposition of a character begins."""


def count_duplicates(questions: Sequence[Question]) -> int:
    """How many questions repeat the normalised text of an earlier one."""
    return len(questions) - len({normalised(q.text) for q in questions})


def overlap(train: Sequence[Question], evaluation: Sequence[Question]) -> list[tuple[str, str]]:
    """Ids of the questions that are in both, by normalised text."""
    seen = {normalised(q.text): q.id for q in train}
    return [(seen[normalised(q.text)], q.id) for q in evaluation if normalised(q.text) in seen]


def check_overlap(train: Sequence[Question], evaluation: Sequence[Question]) -> None:
    """Refuses evaluation questions that are also training questions, by normalised text."""
    if both := overlap(train, evaluation):
        named = ", ".join(f"{a} = {b}" for a, b in both[:5]) + (", ..." if len(both) > 5 else "")
        raise UserError(
            f"{len(both)} of {len(evaluation)} evaluation questions are also training questions "
            f"({named}); remove them from task.train_path or task.eval_path"
        )


def _hub_rows(hub: Rows, split: str) -> list[Row]:
    import datasets

    rows: list[Row] = []
    for config in hub.configs:
        try:
            data = datasets.load_dataset(hub.repo, config, split=hub.split)
        except Exception as error:  # the hub client's failures share no base class
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise HubError(
                f"{hub.repo} can't be loaded from the hub ({reason}); "
                f"give a local file in task.{split}_path",
                error,
            ) from None
        # Rows are numbered through all configurations, so that a message names exactly one.
        for values in data:
            rows.append(Row(hub.repo, f"row {len(rows) + 1}", dict(values)))
    return rows
