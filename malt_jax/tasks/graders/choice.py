r"""Grading multiple choice: the label of one choice.

Labels and texts of the choices come from `question.meta["choices"]` (label -> text; without it, A
to Z). The last statement of an answer (see `statements`) must name one choice, by its label, its
text or both: `(B)`, `B.`, `b) enforce`, `enforce (B)`, `\boxed{B}`. Without a statement the last
line counts when it does so, unless the line above names another choice: a list of all of them.

The rest of the sentence must not contradict the choice: name another one ("B, C and D"; "(A)
enforce" where enforce is B), hedge ("(B) or") or deny ("B is wrong"). Reasons and contrasts are
free: what follows "because" or "rather than", and "not (A)". A bare `A` or `a` before another word
is an article and not a label, unless that word is the text of choice A. If a later sentence calls
another choice right ("However, (C) is better"), there is no answer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from malt_jax.tasks.base import ComparingGrader, Question
from malt_jax.tasks.graders.languages import fold
from malt_jax.tasks.graders.patterns import MAX_SPAN, Patterns
from malt_jax.tasks.graders.statements import statements, taken_back

# Labels without texts, for questions that bring no choices.
_LETTERS = {chr(c): "" for c in range(ord("A"), ord("Z") + 1)}
_RE = Patterns("choice")


@dataclass(frozen=True)
class ChoiceGrader(ComparingGrader):
    """Compares the chosen label with the reference label.

    choices: label -> text for questions that bring none of their own (yes/no questions).
    aliases: other words for a label, lower case.
    """

    choices: Mapping[str, str] = field(default_factory=lambda: _LETTERS)
    aliases: Mapping[str, str] = field(default_factory=dict)

    def extract(self, text: str, question: Question | None = None) -> str | None:
        text = fold(text)
        names = _Names(_choices(question) or self.choices, self.aliases)
        if found := statements(text):
            # A statement that says anything decides, whether it can be read or not. Only an empty
            # one, such as "Answer:", lets the lines below it count.
            last = found[-1]
            if last.form == "box" or last.span.strip(" .:*"):
                label = names.chosen(last.line)
                # "The answer is (B). However, (A) is correct."
                further = (m[m.lastindex or 0] for m in _RE.also_right.finditer(text, last.end))
                others = {names.chosen(name) for name in further}
                return None if others - {None, label} else label
            text = text[last.end :]
        lines = [line for line in text.splitlines() if line.strip(" \t`~")][-2:]
        label = names.chosen(lines[-1]) if lines and len(lines[-1]) <= MAX_SPAN else None
        others = {names.chosen(line) for line in lines[:-1]} - {None, label}
        return None if others else label

    def check(self, question: Question) -> str | None:
        """Why the reference answer can't be graded; None when it can."""
        choices = _choices(question) or self.choices
        if question.answer in choices:
            return None
        return f"the answer {question.answer[:60]!r} is not one of {', '.join(choices)[:80]}"


class _Names:
    """What names a choice: labels, other words for them, and texts, which two choices may share."""

    def __init__(self, choices: Mapping[str, str], aliases: Mapping[str, str]):
        self.labels = {label.casefold(): label for label in choices} | dict(aliases)
        self.owners: dict[str, set[str]] = {}  # the labels of a text, the longest text first
        self.by_key: dict[str, set[str]] = {}
        # The longest text comes first, because one text may begin with another.
        for label, text in sorted(choices.items(), key=lambda item: -len(item[1])):
            if text := fold(text).casefold().strip():
                self.owners.setdefault(text, set()).add(label)
                self.by_key.setdefault(_key(text), set()).add(label)

    def chosen(self, words: str) -> str | None:
        """The one label that `words` name from their start and do not contradict."""
        words = _RE.markup.sub("", words[: MAX_SPAN + 1]).strip().strip("\"'“”").strip()
        words = re.sub(r"^\{([^{}]*)\}$", r"\1", words)  # `\text{Option B}`
        label, rest = self._first(words)
        if label is None or _RE.asked.match(rest):
            return None
        if (ended := _RE.sentence_end.search(own := self._without_own(label, rest))) and taken_back(
            own[ended.start() :], label
        ):
            return None
        sentence, following, *_ = [*_RE.sentence_end.split(rest, maxsplit=2), ""]
        for stated in (_key(rest), _key(following)):  # "No. Yes."
            owners = self.by_key.get(stated) or {self.labels.get(stated, label)}
            if label not in owners:
                return None
        text, rest_of_it = self._text(_RE.before_text.sub("", rest, count=1))
        if text and _RE.end.match(rest_of_it) and label not in self.owners[text]:
            return None  # "A. enforce, because ..." where enforce is B
        return None if self._contradicted(label, sentence) else label

    def _text(self, words: str) -> tuple[str | None, str]:
        """The longest text of a choice that `words` start with, and what follows it."""
        folded = words.casefold()
        for text in self.owners:
            if len(text) > 1 and folded.startswith(text) and not words[len(text) :][:1].isalnum():
                return text, words[len(text) :]
        return None, words

    def _first(self, words: str) -> tuple[str | None, str]:
        """The label that `words` start with, by itself or by its text, and what follows."""
        # 1. All words are the text of a choice; if two choices share it, it names neither.
        if _key(words) and (owners := self.by_key.get(_key(words))):
            return (next(iter(owners)) if len(owners) == 1 else None), ""
        words = words[_end(_RE.lead, words) :]
        # 2. A label in brackets.
        if wrapped := _RE.wrapped.match(words):
            return self.labels.get(wrapped[1].casefold()), words[wrapped.end() :]
        # 3. A text, from the first word on or after an article. A capital A in front of the text of
        # another choice is no article but the label, and the two contradict each other.
        for start in (len(words) - len(words.lstrip("\"'“ ")), _end(_RE.article, words)):
            text, rest = self._text(words[start:])
            if text:
                label, *more = self.owners[text]
                if _RE.capital.match(words) and start and label != self.labels.get("a", label):
                    return None, rest
                return (label, rest) if _RE.end.match(rest) and not more else (None, rest)
        # 4. A bare label, unless it is an article or a pronoun.
        bare = _RE.bare.match(words)
        if bare is None or bare[1].casefold() not in self.labels:
            return None, words
        label, rest = self.labels[bare[1].casefold()], words[bare.end() :]
        # A label in front of its own text needs no sign between them: `B enforce`.
        text, _ = self._text(_RE.before_text.sub("", rest, count=1))
        if text and label in self.owners[text]:
            return label, rest
        article = bare[1] in ("a", "i") and rest.strip(" .!)}]")
        return (None, words) if article or not _RE.end.match(rest) else (label, rest)

    def _contradicted(self, label: str, rest: str) -> bool:
        """Whether the rest of the sentence names another choice, hedges or denies."""
        for which in _RE.which.finditer(rest):  # "B, which is bank", where bank is another one
            text, _ = self._text(rest[which.end() :])
            if text and label not in self.owners[text]:
                return True
        for contrast in _RE.contrast.finditer(rest):  # "B, not library", where library is B
            text, _ = self._text(rest[_end(_RE.article, rest[contrast.end() :]) + contrast.end() :])
            if text and label in self.owners[text]:
                return True
        rest = _RE.wrong.sub("", _RE.reason.split(self._without_own(label, rest))[0])
        for contrast in _RE.contrast.finditer(rest):
            rest_of_it = rest[contrast.end() :]
            # "(B), not (A)", "B, not C or D"
            several = _RE.neither.match(rest_of_it) and label not in self._labels(rest_of_it)
            if several or self._first(rest_of_it)[0] not in (None, label):
                rest = rest[: contrast.start()]  # "(B), not (A)"
                break
        for text, owners in self.owners.items():
            if label not in owners and len(text) > 1 and f" {_key(text)} " in f" {_key(rest)} ":
                return True
        # Only up to the next comma or colon, because what follows may deny another choice.
        denied = _RE.denied.search(re.split("[,;:!?–—]", rest)[0])
        return bool(denied or _RE.unsure.search(rest) or self._labels(rest) - {label})

    def _without_own(self, label: str, words: str) -> str:
        """The words without the choice's own text, which may hold a word like "not" or "over"."""
        for text, owners in self.owners.items():
            if label in owners:
                words = re.sub(re.escape(text), " ", words, flags=re.IGNORECASE)
        return words

    def _labels(self, words: str) -> set[str | None]:
        """All labels in `words`, in brackets or bare; "A" or "no" before a noun is none."""
        found = {self.labels.get(name.casefold()) for name in _RE.wrapped.findall(words)}
        for match in re.finditer(r"(?<![\w'’])\w+", words):
            word, rest = match[0], words[match.end() :]
            # "A", "I" and whole words such as "no" are common, so they count only where they stand
            # alone; any other single character counts unless it is a lower-case letter.
            common = len(word) > 1 or word in "AI"
            if _RE.stands_alone.match(rest) if common else not word.islower():
                found.add(self.labels.get(word.casefold()))
        return found - {None}


def _end(pattern: re.Pattern[str], words: str) -> int:
    """Where the match of a pattern that may be empty ends."""
    match = pattern.match(words)
    return match.end() if match else 0


def _choices(question: Question | None) -> Mapping[str, str] | None:
    return question.meta.get("choices") if question else None


def _key(text: str) -> str:
    return _RE.blanks.sub(" ", text).strip().casefold()
