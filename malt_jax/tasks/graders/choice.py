r"""Grading multiple choice: the label of one choice.

Labels and texts of the choices come from `question.meta["choices"]` (label -> text; without it, A
to Z). The last statement of an answer (see `statements`) must name one choice: `(B)`, `B.`, `B`,
`B) enforce`, `\boxed{B}`, or the choice's text alone. A label with another choice's text, two
labels, and negations name none. Without a statement, a last line that is only a label, or a label
with its text, counts. A bare `A` or `a` before another word is an article, not a label.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from malt_jax.tasks.base import Grade, Question
from malt_jax.tasks.graders.statements import statements

_LETTERS = {chr(c): "" for c in range(ord("A"), ord("Z") + 1)}
_REFUSED = re.compile(
    r"\b(?:not|neither|nor|or|wrong|incorrect|none|both)\b|n['’]t\b", re.IGNORECASE
)
_MARKUP = re.compile(r"[*_`$]+|\\(?:left|right|[()\[\]])|\\(?:text|mathrm|textbf|mathbf)\s*(?=\{)")
_WRAPPED = re.compile(r"[\s:]*(?:option|choice|answer|letter)?[\s:]*[({\[]\s*(\w+)\s*[)}\]]", re.I)
_LEAD = re.compile(r"[\s:({\[]*(?:(?:option|choice|letter)\s+)?", re.IGNORECASE)
_BLANKS = re.compile(r"[\W_]+")


@dataclass(frozen=True)
class ChoiceGrader:
    """Compares the chosen label with the reference label.

    choices: label -> text for questions that bring none of their own (yes/no questions).
    aliases: other words for a label, lower case.
    """

    choices: Mapping[str, str] = field(default_factory=lambda: _LETTERS)
    aliases: Mapping[str, str] = field(default_factory=dict)

    def extract(self, text: str, question: Question | None = None) -> str | None:
        choices = _choices(question) or self.choices
        found = statements(text)
        for statement in reversed(found):
            words = statement.before + " " + statement.span
            label = self._label(statement.span, choices)
            if label is None and statement.form != "box" and not statement.span.strip(" .:*"):
                return self._label(_last_line(text[statement.end :]), choices)
            return None if _REFUSED.search(_without_texts(words, choices)) else label
        return self._label(_last_line(text), choices)

    def grade(self, texts: Sequence[str], questions: Sequence[Question]) -> list[Grade]:
        grades = []
        for text, question in zip(texts, questions, strict=True):
            parsed = self.extract(text, question)
            grades.append(Grade(parsed, parsed is not None and parsed == question.answer))
        return grades

    def check(self, question: Question) -> str | None:
        """Why the reference answer can't be graded; None when it can."""
        choices = _choices(question) or self.choices
        if question.answer in choices:
            return None
        return f"the answer {question.answer[:60]!r} is not one of {', '.join(choices)[:80]}"

    def _label(self, words: str, choices: Mapping[str, str]) -> str | None:
        """The one label that `words` name from their start, or None."""
        words = _MARKUP.sub("", words).strip().strip("\"'“”").strip()
        by_text: dict[str, list[str]] = {}  # two choices of CommonsenseQA can have one text
        for name, text in choices.items():
            by_text.setdefault(_key(text), []).append(name)
        if _key(words) and (owners := by_text.get(_key(words))):
            return owners[0] if len(owners) == 1 else None
        names = {label.casefold(): label for label in choices} | dict(self.aliases)
        label, rest = _split(words, names)
        if label is None or _other_label(rest, choices):
            return None
        told = _key(rest)
        if told and label not in by_text.get(told, [label]):
            return None  # "(A) enforce" where enforce is B
        return label


def _split(words: str, names: Mapping[str, str]) -> tuple[str | None, str]:
    """A label at the start of `words` and what follows it."""
    if wrapped := _WRAPPED.match(words):
        return names.get(wrapped[1].casefold()), words[wrapped.end() :]
    words = words[_LEAD.match(words).end() :]
    word = re.match(r"\w+", words)
    if word is None or word[0].casefold() not in names:
        return None, words
    rest = words[word.end() :]
    ends = re.match(r"\s*(?:$|[).,:;|\-–—!}\]]|because\b|since\b|as\b)", rest)
    if len(word[0]) == 1 and (not ends or (word[0].islower() and rest.strip(" .!)}]"))):
        return None, words  # an article, or a letter in a sentence
    return names[word[0].casefold()], rest


def _other_label(rest: str, choices: Mapping[str, str]) -> bool:
    """Whether a second label follows: `B, C` or `(B) (C)` or `B and C`."""
    labels = "|".join(re.escape(label) for label in choices)
    patterns = (
        rf"\(\s*(?:{labels})\s*\)",
        rf"^\W*(?:and\s+)?(?:{labels})\W*$",
        rf"^\W*(?:and|/|&)\W*(?:{labels})\b",
    )
    return any(re.search(pattern, rest) for pattern in patterns)


def _without_texts(words: str, choices: Mapping[str, str]) -> str:
    """`words` less the choices' own texts, which may hold "not" or "or"."""
    for text in choices.values():
        if len(text) > 1:
            words = re.sub(re.escape(text), " ", words, flags=re.IGNORECASE)
    return words


def _choices(question: Question | None) -> Mapping[str, str] | None:
    return question.meta.get("choices") if question else None


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def _key(text: str) -> str:
    return _BLANKS.sub(" ", text).strip().casefold()
