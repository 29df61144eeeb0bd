"""Grading words: one exact answer, or a set of them in any order.

The answer is the last statement (see `statements`), without one the last line. It is compared
after case, articles, blanks, quotes, Markdown marks and a final full stop are set aside; nothing
else is forgiven, so "Paris or London" is not "Paris".
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from malt_jax.tasks.base import Grade, Question
from malt_jax.tasks.graders.statements import statements

_MARKS = re.compile(r"\*\*|__|`|\\(?:text|mathrm|textbf|mathbf)\s*\{([^{}]*)\}")
_QUOTES = "\"'“”‘’$ \t"
_SEPARATORS = re.compile(r",?\s+and\s+|\s*[,;\n]\s*|\s+&\s+", re.IGNORECASE)
_ARTICLES = re.compile(r"\b(?:a|an|the)\s+(?=\w)")


def final_words(text: str) -> str | None:
    """The stated answer as it stands, or the last line that is not blank."""
    found = statements(text)
    if found:
        words = found[-1].span
        if not words.strip(" *:.") and found[-1].form != "box":
            words = text[found[-1].end :].strip().partition("\n")[0]
    else:
        words = text.rstrip().rpartition("\n")[2]
    return words.strip() or None


def tidy(words: str) -> str:
    """One spelling for what counts as the same answer."""
    words = unicodedata.normalize("NFKC", words)
    words = _MARKS.sub(lambda m: m[1] or "", words).strip(_QUOTES)
    words = words.rstrip(".!").strip(_QUOTES).casefold()
    return " ".join(_ARTICLES.sub("", words).split())


@dataclass(frozen=True)
class ExactGrader:
    """The same words as the reference."""

    def extract(self, text: str) -> str | None:
        words = final_words(text)
        return (tidy(words) or None) if words else None

    def grade(self, texts: Sequence[str], questions: Sequence[Question]) -> list[Grade]:
        return _compare(self, texts, questions, tidy)

    def check(self, question: Question) -> str | None:
        """Why the reference answer can't be graded; None when it can."""
        return None if tidy(question.answer) else "the answer is only punctuation"


@dataclass(frozen=True)
class SetGrader:
    """The same set of words as the reference: order and repetition are free, extras are wrong."""

    def extract(self, text: str) -> str | None:
        words = final_words(text)
        return (_set(words) or None) if words else None

    def grade(self, texts: Sequence[str], questions: Sequence[Question]) -> list[Grade]:
        return _compare(self, texts, questions, _set)

    def check(self, question: Question) -> str | None:
        """Why the reference answer can't be graded; None when it can."""
        return None if _set(question.answer) else "the answer lists nothing"


def _set(words: str) -> str:
    words = re.sub(r"\\([{}])", r"\1", words).strip().rstrip(".").strip(_QUOTES)
    for opening, closing in ("{}", "[]", "()"):
        if words.startswith(opening) and words.endswith(closing):
            words = words[1:-1]
    return ", ".join(sorted({w for part in _SEPARATORS.split(words) if (w := tidy(part))}))


def _compare(grader, texts, questions, canonical) -> list[Grade]:
    grades = []
    for text, question in zip(texts, questions, strict=True):
        parsed = grader.extract(text)
        grades.append(Grade(parsed, parsed is not None and parsed == canonical(question.answer)))
    return grades
