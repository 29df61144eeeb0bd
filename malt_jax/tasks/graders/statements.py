r"""Where a text states its final answer.

Three forms count: `#### x` (GSM8K's own), `\boxed{x}`, and prose ("The answer is x", "Answer: x").
The rule, for every grader: **the last statement counts, whatever its form**; an earlier one was
taken back. So a text can never collect the reward of two answers. Boxes joined by "or", "and" or a
comma are one statement, `\boxed{17} or \boxed{18}` says both. What follows an unreadable last
statement may still hold the answer (`#### Final answer` and then a line with it), what precedes it
may not.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

MAX_SPAN = 400  # characters; what is longer is no final answer

# The spans are looked ahead at, so that a second statement on the same line is found too.
_HASH = re.compile(rf"(?<!#)####(?!#)[ \t]*(?=([^\n]{{0,{MAX_SPAN + 1}}}))")
_PROSE = re.compile(
    r"(?<!\bto )\banswers?\b(?P<between>[^.:=\n]{0,80}?)"
    r"(?::|=|(?<![A-Za-z])(?:is|are)(?![A-Za-z'’]))"
    rf"[\s:*_]*(?=(?P<span>[^\n]{{0,{MAX_SPAN + 1}}}))",
    re.IGNORECASE,
)
_BOX = re.compile(r"\\f?boxed\s*\{|\\fbox\s*\{")
_JOIN = re.compile(r"[\s$.]*(?:,|;|&|\\text\s*\{\s*(?:or|and)\s*\}|\bor\b|\band\b)[\s$]*")
_COMMENT = re.compile(
    r"(?:also |indeed )?(?:correct|right|verified|confirmed|clear|as follows)\b", re.I
)
_CHECK = re.compile(r"\b(?:check|verify|confirm|test)(?:ing)?\s+(?:\w+\s+)?$", re.IGNORECASE)
_SENTENCE_END = re.compile(r"[.!?](?=\s|$|\*|\")")


@dataclass(frozen=True)
class Statement:
    """A stated answer: its words, where it starts, and where the text goes on after it.

    `before` is what stands between "answer" and "is", where a negation can hide.
    """

    form: str  # hash, box or prose
    span: str
    start: int
    end: int
    before: str = ""


def statements(text: str) -> list[Statement]:
    """All statements of a final answer, in the order of the text."""
    found = _boxes(text)
    for match in _HASH.finditer(text):
        found.append(Statement("hash", match[1], match.start(), match.end(1)))
    for match in _PROSE.finditer(text):
        span = match["span"]
        if _COMMENT.match(span) or _CHECK.search(text[max(0, match.start() - 30) : match.start()]):
            continue  # "the answer is correct", "to check our answer:" state none
        stop = _SENTENCE_END.search(span)
        span = span[: stop.start()] if stop else span
        end = match.start("span") + len(span)
        found.append(Statement("prose", span, match.start(), end, match["between"]))
    return sorted(found, key=lambda s: s.start)


def _boxes(text: str) -> list[Statement]:
    """Boxes with balanced braces; joined ones become one. An open last box has an empty span."""
    found: list[Statement] = []
    position = 0
    while opening := _BOX.search(text, position):
        position = closing_brace(text, opening.end())
        if not position:
            return [*found, Statement("box", "", opening.start(), len(text))]
        span = text[opening.end() : position - 1]
        box = Statement("box", span.strip(), opening.start(), position)
        if found and _JOIN.fullmatch(joint := text[found[-1].end : box.start]):
            word = " or " if "or" in joint else ", "
            last = found.pop()
            box = Statement("box", f"{last.span}{word}{box.span}", last.start, box.end)
        found.append(box)
    return found


def closing_brace(text: str, start: int) -> int:
    """The position after the brace that closes the one opened before `start`; 0 when none does."""
    depth = 1
    for match in re.compile(r"\\.|[{}]", re.DOTALL).finditer(text, start):
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if depth == 0:
            return match.end()
    return 0
