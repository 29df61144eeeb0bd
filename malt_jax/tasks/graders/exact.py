"""Grading words: one exact answer, or a set of them in any order.

The answer is the last statement (see `statements`), or without one the last line; a list below
"Answer:" is read as its items with commas. The comparison ignores case, a leading article, blanks,
quotes, Markdown marks, brackets around a whole answer, the script of digits, and a final full stop
or exclamation mark. It ignores nothing else, so "Paris or London" is not "Paris".
"""

from __future__ import annotations

import re
import unicodedata

from malt_jax.tasks.base import ComparingGrader, Question
from malt_jax.tasks.graders.languages import fold
from malt_jax.tasks.graders.patterns import MAX_SPAN, Patterns
from malt_jax.tasks.graders.statements import statements

_CHARACTERS = str.maketrans("−‐–’‘“”", "---''\"\"")
_MEANT = ("<super>", "<sub>", "<circle>", "<square>", "<fraction>")  # 10² is not 102
_RE = Patterns("exact")
_EDGES = "\"'$ \t\u200b\u200c\u200d\u2060\ufeff"


def final_words(text: str) -> str | None:
    """The stated answer as written, or the last line that is not blank."""
    text = fold(text)
    found = statements(text)
    if not found:
        words = text.rstrip().rpartition("\n")[2]
    elif found[-1].form == "box":
        words = found[-1].span
    else:
        words = _below(text, found[-1].start, found[-1].end, found[-1].span)
    words = words.strip()
    return words if words and len(words) <= MAX_SPAN else None


def _below(text: str, start: int, end: int, span: str) -> str:
    """The span itself; if it is blank, the line or list below the line with "answer"."""
    place = end - len(span)
    if not span.strip(" *:."):
        span = text[end:].strip().partition("\n")[0]
        place = end + len(text[end:]) - len(text[end:].lstrip())
    line = text.rfind("\n", 0, place) + 1
    # Items are collected line by line, up to the first line that is no item.
    items = []
    while line > start and (item := _RE.item.match(text, line)):
        items.append(item[1])
        line = item.end()
    return ", ".join(items) or span


def tidy(words: str) -> str:
    """The one spelling to which all spellings of an answer are brought."""
    words = fold(words)
    words = "".join(
        c if unicodedata.decomposition(c).startswith(_MEANT) else unicodedata.normalize("NFKC", c)
        for c in words
    )
    words = unicodedata.normalize("NFC", words).translate(_CHARACTERS).casefold()
    words = _RE.marks.sub(lambda m: m[1] or "", words)
    # Quotes, brackets and marks may be nested in any order, so this repeats until nothing changes.
    before = None
    while words != before:
        before = words
        words = words.strip(_EDGES).rstrip(".!")
        if around := _RE.around.fullmatch(words):
            words = around[around.lastindex or 0]
    return " ".join(_RE.article.sub("", words).split())


class ExactGrader(ComparingGrader):
    """The same words as the reference."""

    canonical = staticmethod(tidy)

    def extract(self, text: str, question: Question | None = None) -> str | None:
        words = final_words(text)
        return (self.canonical(words) or None) if words else None

    def reference(self, question: Question) -> str:
        return self.canonical(question.answer)

    def check(self, question: Question) -> str | None:
        """Why the reference answer can't be graded; None when it can."""
        if len(question.answer) > MAX_SPAN:
            return f"the answer has {len(question.answer)} characters, more than {MAX_SPAN}"
        return None if self.reference(question) else "the answer holds no words"


def _set(words: str) -> str:
    """The elements, each once and in alphabetical order."""
    words = _RE.marks.sub(lambda m: m[1] or "", fold(words))
    words = re.sub(r"[^\S\n]+", " ", re.sub(r"\\([{}])", r"\1", words))
    # The full stop at the end is dropped, but not the last point of an ellipsis.
    parts = _parts(re.sub(r"(?<!\.)\.$", "", words.strip(_EDGES)))
    # "..." is an element that no reference has: it says that there are more.
    return ", ".join(sorted({tidy(part) or part.strip() for part in parts if part.strip(_EDGES)}))


def _parts(words: str) -> list[str]:
    """The parts between separators outside of brackets; one pair around everything is ignored."""
    parts, start, depth = [], 0, 0
    for match in _RE.bracket_or_separator.finditer(words):
        if match[0] in "([{":
            depth += 1
        elif match[0] in ")]}":
            depth -= 1
        elif depth <= 0:
            parts.append(words[start : match.start()])
            start = match.end()
    # No separator is outside of the brackets around everything, so the list is inside them.
    if not parts and words[:1] in tuple("([{") and words[-1:] in tuple(")]}"):
        return _parts(words[1:-1])
    return [re.sub(r"\s*,\s*", ",", part) for part in [*parts, words[start:]]]


class SetGrader(ExactGrader):
    """The same set of words as the reference: order and repetition are free, extras are wrong."""

    canonical = staticmethod(_set)

    def extract(self, text: str, question: Question | None = None) -> str | None:
        # A list line by line is one answer, and not its first or last line alone.
        return super().extract(_RE.listed.sub(_on_one_line, fold(text)), question)


def _on_one_line(listed: re.Match[str]) -> str:
    lines = [_RE.bullet.sub("", line).strip() for line in listed["lines"].splitlines() if line]
    return f"\nAnswer: {', '.join(lines)}"
