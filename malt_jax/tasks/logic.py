"""Logic puzzles made by `reasoning-gym` (an optional extra): as many as are asked for.

A puzzle belongs to the train or the eval split by a hash of its text, so the splits can't overlap.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from malt_jax.errors import UserError
from malt_jax.tasks.base import Question, Task
from malt_jax.tasks.files import Row, read_rows
from malt_jax.tasks.graders import ANSWER_FORMATS
from malt_jax.tasks.graders.exact import SetGrader
from malt_jax.tasks.loading import choose, to_questions
from malt_jax.tasks.prompts import role_templates

FAMILIES = ("knights_knaves", "family_relationships", "syllogism", "self_reference")
DEFAULT_COUNT = 1000
EVAL_SHARE = 5  # one puzzle in this many belongs to the eval split


@dataclass(frozen=True)
class Puzzles:
    """Loads puzzles of the families in turn, `limit` in all (default 1,000), drawn by `seed`."""

    families: tuple[str, ...] = FAMILIES

    def __call__(
        self,
        split: str,
        path: str | None = None,
        limit: int | None = None,
        seed: int | None = None,
    ) -> list[Question]:
        if path is not None:
            return choose(to_questions(read_rows(path), _parse, split), limit, seed)
        try:
            import reasoning_gym
        except ImportError:
            raise UserError(
                "task.name: `logic` needs reasoning-gym, which is not installed; "
                "pip install reasoning-gym, or give task.train_path and task.eval_path"
            ) from None
        wanted = limit or DEFAULT_COUNT
        sources = [
            reasoning_gym.create_dataset(family, size=wanted * 20, seed=seed or 0)
            for family in self.families
        ]
        questions: dict[str, Question] = {}
        for index in range(wanted * 20):
            for family, source in zip(self.families, sources, strict=True):
                entry = source[index]
                question = _question(entry["question"], entry["answer"], family, split)
                if _split_of(question.text) == split and len(questions) < wanted:
                    questions.setdefault(question.id, question)
            if len(questions) == wanted:
                return list(questions.values())
        raise UserError(
            f"{wanted} puzzles asked for, only {len(questions)} different ones were found; "
            "ask for fewer"
        )


def _split_of(text: str) -> str:
    return "train" if hashlib.sha256(text.encode()).digest()[0] % EVAL_SHARE else "eval"


def _question(text: str, answer: str, family: str, split: str) -> Question:
    name = hashlib.sha256(text.encode()).hexdigest()[:12]
    return Question(f"{split}-{family}-{name}", text, answer, {"subject": family})


def _parse(row: Row, split: str) -> Question:
    meta = {"subject": row.text("family")} if row.has("family") else {}
    text, answer = row.text("question"), row.text("answer", numbers=True).strip()
    return Question(row.identity(split, "id"), text, answer, meta)


def task(families: tuple[str, ...] = FAMILIES) -> Task:
    answer_format = ANSWER_FORMATS["set"]
    return Task(
        name="logic",
        description="generated puzzles: " + ", ".join(families),
        load=Puzzles(families),
        grader=SetGrader(),
        templates=role_templates(answer_format),
        answer_format=answer_format,
    )
