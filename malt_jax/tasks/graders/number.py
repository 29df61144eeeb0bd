r"""Grading numbers, exactly.

A statement of the final answer (see `statements`; without one, the last number of the text) must
hold one number, written in any way that `numerals` reads. A chain of equations counts by its last
right-hand side: `9 * 2 = 18` is 18.

Values are compared as exact fractions: 0.333 is not 1/3. A statement has no answer if it holds two
different numbers, in figures or words ("18 or nineteen"; "18 apples, not 17" says one), a hedge, a
negation ("not 18"), a bound ("at least 18") or anything left to compute (`2^{10}`, `9 + 9`, `3\pi`,
"half of 18"). `2x = 18` says nothing of x, so it counts only where the question asks for `2x`. A
number in words alone ("eighteen") is no answer, and neither is a place ("18th").
"""

from __future__ import annotations

import re
from fractions import Fraction

from malt_jax.tasks.base import ComparingGrader, Question
from malt_jax.tasks.graders.languages import denied, fold, writes_decimal_comma
from malt_jax.tasks.graders.numerals import (
    RUN,
    SPELLED,
    Unreadable,
    canonical,
    figures,
    is_ordinal,
    left_to_compute,
    numbers,
    plain,
)
from malt_jax.tasks.graders.patterns import MAX_SPAN, Patterns
from malt_jax.tasks.graders.statements import statements, unfinished, without_request

_RE = Patterns("number")


def value_of(words: str, decimal_comma: bool = False, asked: str = "") -> Fraction:
    """The one number in `words`. Raises `Unreadable` for none, several, or a calculation.

    asked: the question's text, whose terms (`x + y`) may be what the number is the value of.
    """
    exact, about, rounded = words[: MAX_SPAN + 1].partition("≈")
    if about and "≈" not in rounded and (given := _readable(exact, decimal_comma)) is not None:
        # 17.6 ≈ 18 says 18 if that is what 17.6 rounds to.
        value = value_of(rounded, decimal_comma)
        places = re.search(r"\.([0-9]*)", rounded)
        if abs(given - value) > Fraction(1, 2 * 10 ** len(places[1] if places else "")):
            raise Unreadable("several")
        return value
    # One character more than allowed is kept, so that the test below sees what is too long.
    words = plain(fold(words[: MAX_SPAN + 1]))
    if len(words) > MAX_SPAN or not re.search("[0-9]", words):
        raise Unreadable("no number, or too long")
    # Spelled numbers become figures only now: without a digit the words are no answer.
    return _one(SPELLED.sub(figures, words), decimal_comma, asked)


def _readable(words: str, decimal_comma: bool) -> Fraction | None:
    try:
        return value_of(words, decimal_comma)
    except Unreadable:
        return None


def _one(words: str, decimal_comma: bool, asked: str) -> Fraction:
    if instead := _RE.instead.search(words):  # 18 apples, not 17
        # Both halves are read: a number that is stated and denied is no answer.
        value = _one(words[: instead.start()], decimal_comma, asked)
        if value == _one(words[instead.end() :], decimal_comma, asked):
            raise Unreadable("stated and denied")
        return value
    first = re.search("[0-9]", words)
    # A bound stands before its number ("at least 18"), and after it the same words say other
    # things.
    if first is None or refused(words) or _RE.bound.search(words[: first.start()]):
        raise Unreadable("no number, or denied, hedged or a bound")
    rest = _RE.aside.sub("", words[first.end() :])
    values: set[Fraction] = set()
    for part in _RE.parts.split(words[: first.end()] + rest):
        # Of a chain of equations the last side counts; the sides before it are looked at below.
        *left, part = part.split("=")
        if left_to_compute(part):
            raise Unreadable("left to compute")
        values.update(numbers(part, decimal_comma))
        named = (  # A = l * w = 18
            left and _RE.name_alone.fullmatch(left[0]) and not _of_unknown(left[0])
        )
        for side in left:  # 17 = 18; "Day 2 = 18" and "9 * 2 = 18" hold one answer
            if not named and _of_unknown(side) and not asks_for(asked, side):
                raise Unreadable("the value of something else")
            number_alone = re.fullmatch(r"(?=\s*\.?[0-9])[^A-Za-z]*[0-9]\s*\w*\s*", side)
            difference = re.search(r"[0-9)]\s*-", side)  # 20 - 2 = 18
            if number_alone and not difference and not left_to_compute(side):
                values.update(numbers(side, decimal_comma))
    # In a set the same value stated twice is still one answer.
    if len(values) != 1:
        raise Unreadable("no number, or several")
    return values.pop()


def _of_unknown(side: str) -> bool:
    """Whether the side of an equation computes with a letter, and so gives no value to it."""
    written = _RE.expression.search(side)
    return bool((written and _RE.unknown.search(written[0])) or _RE.part_of_unknown.search(side))


def asks_for(question: str, side: str) -> bool:
    """Whether a side of an equation, such as `x + y`, stands alone in the question: it is asked."""
    written = _RE.expression.search(side)
    term = _RE.term_edges.sub("", "".join(written[0].split()) if written else "")
    if not term or _RE.part_of_unknown.search(side):
        return False
    words = _RE.around_signs.sub(r"\1", question).split()
    return term in {_RE.term_edges.sub("", word) for word in words}


def refused(words: str) -> bool:
    """Whether the words deny what they state, or state it with doubt."""
    return bool(_RE.negated.search(words) or _RE.hedged.search(words))


def final_number(text: str, asked: str = "") -> Fraction | None:
    """The number of the last statement; the last number of all if there is no statement.

    What repeats a sentence of the question, `asked`, is no answer to it.
    """
    text = without_request(_RE.abbreviated.sub(r"\1", fold(text)))
    found = statements(text)
    if not found:
        return _last_number(text, fold(asked))
    last = found[-1]
    rest = text[last.end :]
    # No digit is in the statement: if it only announces ("The answer is:"), what follows is read.
    if last.form == "prose" and not re.search("[0-9]", plain(last.span)):
        announced = not re.search(r"\w", last.span) or last.span.rstrip(" *").endswith(":")
        return _last_number(rest) if announced and not _RE.negated.search(last.before) else None
    # `#### Final answer` is a heading, and the number is below it.
    heading = last.form == "hash" and not _RE.lead.match(plain(last.span[:MAX_SPAN]))
    if heading and re.search("[0-9]", rest) and not SPELLED.search(last.span):
        return _last_number(rest)
    nearest = " ".join(last.before.rpartition(",")[2].split()[-2:])
    if _RE.negated.search(last.before) or _RE.bound.search(nearest):
        return None
    if last.form == "box" and _RE.goes_on.search(last.span):
        return None
    try:
        return value_of(last.span, last.decimal_comma, asked)
    except Unreadable:
        return None


def _last_number(text: str, asked: str = "") -> Fraction | None:
    """The last number of `text`, unless it is denied, hedged, in a task or to be computed.

    A text that ends in a question, or within a sentence, answers none.
    """
    # The last sentence or line that holds a digit is the one that may answer.
    lines = [s for s in re.split(r"\n|(?<=[.!?])\s", text) if re.search("[0-9]", s)]
    if not lines or unfinished(text, lines[-1]):
        return None
    line = re.sub(r"^\s*[-*•>]\s+", "", lines[-1]).strip()
    if len(line.split()) > 2 and line in asked:
        return None
    # A long line keeps its end, from a whole word on: a number that is cut is another number.
    if len(line) > MAX_SPAN:
        line = line[-MAX_SPAN:].partition(" ")[2]
    left, equated, words = plain(line).rpartition("=")
    runs = [run for run in RUN.finditer(words) if not is_ordinal(words, run)]
    if _RE.loose_group.search(words):
        return None  # "1, 800" may be one number or two
    if not runs or _RE.hedge.search(SPELLED.sub(figures, words)) or left_to_compute(words):
        return None
    before, after = words[: runs[-1].start()], words[runs[-1].end() :]
    # An operator before the number makes it an operand and not a result.
    operand = re.search(r"[0-9)]\s*[-+*/×÷]\s*$", before)
    other = operand or _RE.step.search(before) or _RE.denied.search(before)
    bound = _RE.touching_bound.search(before[-40:])
    if other or bound or _RE.negated.search(after) or denied(line) or _RE.or_more.match(after):
        return None
    first, chained, side = left.rpartition("=")
    named = chained and _RE.name_alone.fullmatch(first.partition("=")[0])  # V = l * w = 18
    if equated and not named and _of_unknown(side):
        return None  # "2n = 18"
    # After "9 * 2 = 18" a further number is not the result; in "18 per 2 days" it is a rate.
    if equated:
        words = words[: runs[0].end()] + _RE.aside.sub("", words[runs[0].end() :])
    try:
        read = numbers(words, writes_decimal_comma(f"{text} {asked}"))
    except Unreadable:
        return None
    return read[-1] if read and not (equated and len(set(read)) > 1) else None


class NumberGrader(ComparingGrader):
    """Exact comparison of one number with the reference."""

    def extract(self, text: str, question: Question | None = None) -> str | None:
        value = final_number(text, question.text if question else "")
        return None if value is None else canonical(value)

    def reference(self, question: Question) -> str:
        return canonical(value_of(question.answer))

    def check(self, question: Question) -> str | None:
        """Why the reference answer can't be graded; None when it can."""
        try:
            value_of(question.answer)
        except Unreadable as reason:
            return f"the answer {question.answer[:60]!r} is not one number ({reason})"
        return None
