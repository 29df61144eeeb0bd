"""Tasks whose questions are made by a program: no file, no network, and as many as are needed.

A hash of its text alone assigns a question to the train or the eval split, so the splits cannot
overlap, whatever seed or count is asked for.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from malt_jax.errors import UserError
from malt_jax.tasks.base import ComparingGrader, Question, Task
from malt_jax.tasks.files import Row, read_rows
from malt_jax.tasks.loading import choose, to_questions

EVAL_SHARE = 5
"""One question in this many belongs to the eval split."""
COUNTS = {"train": 20_000, "eval": 5_000}
"""How many questions a split offers: few enough to list, far fewer than there are."""
SPLITS = tuple(COUNTS)
# Short, because the models of these tasks read one character per token. The role comes first, so
# that the prompts of one tree share their beginning.
TEMPLATES = {
    "generator": "solve|{question}|",
    "verifier": "check|{question}|{generator}|",
    "refiner": "fix|{question}|{generator}|{verifier}|",
    "retry": "retry|{question}|{previous}|",
    "debate": "debate|{question}|{previous};{other_1};{other_2}|",
}


def split_of(text: str) -> str:
    """The split of a question, from the SHA-256 of its text: no seed or count can move it."""
    # Eight bytes of the hash as a number: its remainder is uniform over the questions.
    digest = hashlib.sha256(text.encode()).digest()
    return "eval" if int.from_bytes(digest[:8], "big") % EVAL_SHARE == 0 else "train"


@dataclass(frozen=True)
class GeneratedGrader(ComparingGrader):
    """Right when the answer at the end of a turn is the reference."""

    read: Callable[[str], str | None]

    def extract(self, text: str, question: Question | None = None) -> str | None:
        return self.read(text)


@dataclass(frozen=True)
class Generated:
    """A generated task: what its own file says of it, and what all of them share."""

    name: str
    description: str
    draw: Callable[[random.Random], str]
    """A random question's text."""
    solve: Callable[[str], str]
    """The answer of a question's text; ValueError, in one sentence, if it is no such question."""
    extract: Callable[[str], str | None]
    """The answer at the end of a turn, written as `solve` writes it; None without one."""
    level: Callable[[str], str]
    """What a question's results are grouped by."""
    mismatch: Callable[[str], tuple[str, str]]
    """By the right answer: what is said of a file's wrong one, and how to correct it."""
    answer_format: str
    _made: dict[tuple[str, int], list[str]] = field(default_factory=dict, compare=False)

    def task(self) -> Task:
        """The task as `get_task` gives it."""
        return Task(
            name=self.name,
            description=self.description,
            load=self.load,
            grader=GeneratedGrader(self.extract),
            templates=TEMPLATES,
            answer_format=self.answer_format,
        )

    def make_question(self, index: int, seed: int, split: str = "train") -> tuple[str, str]:
        """Question `index` of a split in the order of `seed`, as `(question, answer)`.

        Different indices give different questions, so `range(n)` has no duplicate.
        """
        if split not in SPLITS:
            raise ValueError(f"split must be one of {SPLITS}, not {split!r}")
        if not 0 <= index < COUNTS[split]:
            raise IndexError(
                f"the {split} split offers {COUNTS[split]} questions, asked for {index}"
            )
        text = self._texts(split, seed)[index]
        return text, self.solve(text)

    def load(
        self,
        split: str,
        path: str | None = None,
        limit: int | None = None,
        seed: int | None = None,
    ) -> list[Question]:
        """`limit` questions (default all) in the order of `seed` (default 0), or those of a file.

        A question's id is a hash of its text, so it means the same question under every seed.
        """
        if path is not None:
            return choose(to_questions(read_rows(path), self._parse, split), limit, seed)
        if split not in SPLITS:
            raise UserError(f"no split {split!r}; choose from {', '.join(SPLITS)}")
        available = COUNTS[split]
        if limit is not None and not 0 < limit <= available:
            raise UserError(
                f"{limit} {self.name} questions asked for; the {split} split holds {available}"
            )
        pairs = (self.make_question(i, seed or 0, split) for i in range(limit or available))
        return [self._question(split, text, answer) for text, answer in pairs]

    def _texts(self, split: str, seed: int) -> list[str]:
        """All distinct questions that a split offers, in the order of a seed."""
        if (split, seed) not in self._made:
            # `random` hashes a text by itself, so the order is the same in every process.
            rng = random.Random(f"{self.name}:{split}:{seed}")
            found: dict[str, None] = {}
            while len(found) < COUNTS[split]:
                if split_of(text := self.draw(rng)) == split:
                    found[text] = None
            self._made[split, seed] = list(found)
        return self._made[split, seed]

    def _question(self, split: str, text: str, answer: str) -> Question:
        identity = f"{split}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
        return Question(identity, text, answer, {"level": self.level(text)})

    def _parse(self, row: Row, split: str) -> Question:
        text = row.text("question")
        try:
            right = self.solve(text)
        except ValueError as error:
            example, _ = self.make_question(0, 0, split)
            raise row.fail(str(error)[:200], f"write it as {example}") from None
        answer = row.text("answer", numbers=True).strip()
        if answer != right:
            found, correction = self.mismatch(right)
            raise row.fail(f"`answer` is {answer[:40]!r}, {found}", correction)
        return self._question(split, text, answer)
