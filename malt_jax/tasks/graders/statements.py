r"""Where a text states its final answer.

Three forms count: `#### x` (GSM8K's own), `\boxed{x}`, and prose ("The answer is x", "Answer: x",
and the same in the other languages of `languages`). Every grader follows one rule: **the last
statement counts, whatever its form**, because an earlier one was taken back. So a text can never
collect the reward of two answers. Boxes that "or", "and" or a comma joins are one statement:
`\boxed{17} or \boxed{18}` says both. If the last statement cannot be read, what follows it may
still hold the answer (`#### Final answer`, then a line with it); what precedes it may not. A remark
("The answer is rounded to 2 decimal places") and a check ("if the answer is 18, then ...", where it
is) state nothing.

**A denied statement counts and holds no answer**; it is returned as an empty box. A statement is
denied if its own clause denies or supposes it ("I doubt the answer is 18", "the answer is not
\boxed{18}", "\boxed{18} or 17"), or if the next words take it back ("The answer is 18. No, that is
wrong."). A box inside prose or on a `####` line is one statement with it.
"""

from __future__ import annotations

import re
import tomllib
from bisect import bisect_left
from dataclasses import dataclass, replace
from pathlib import Path

from malt_jax.tasks.graders.languages import (
    COPULA,
    FACTS,
    REASON,
    TAKEN_BACK,
    Language,
    candidates,
)
from malt_jax.tasks.graders.patterns import Patterns

MAX_STATEMENTS = 100  # per form; no honest text has more, so only the last ones are judged
_CLAUSE = 200  # characters examined on either side of a statement
_NEAR = 6  # words before "answer" in which a negation concerns the statement
_RE = Patterns("statements", foreign=TAKEN_BACK, facts=FACTS)
_GRADERS = tomllib.loads(Path(__file__).with_name("graders.toml").read_text(encoding="utf-8"))
_ASKED = re.compile("|".join(re.escape(entry["asks"]) for entry in _GRADERS.values()))


@dataclass(frozen=True)
class Statement:
    """A stated answer: its words, where it starts, and where the text continues after it.

    `before` holds the words between "answer" and "is", where a negation can hide. `line` is the
    span with the rest of its line. `decimal_comma` says how the statement's language writes 3.5.
    """

    form: str  # hash, box or prose
    span: str
    start: int
    end: int
    before: str = ""
    line: str = ""
    decimal_comma: bool = False


def statements(text: str) -> list[Statement]:
    """All statements of a final answer in `text`, which is folded (see `languages`), in order."""
    text = without_request(text)
    boxed = boxes(text)[-MAX_STATEMENTS:]
    starts = [box.start for box in boxed]
    found: list[Statement] = []
    denied: set[int] = set()  # boxes inside denied words
    checks: list[Statement] = []
    # 1. Prose and `####` lines. If one is denied, so are the boxes inside it; if it holds boxes,
    # they stand for it.
    for words in [*_hashes(text), *_prose(text)]:
        around = bisect_left(starts, words.start) - 1
        if around >= 0 and words.start < boxed[around].end:
            continue  # `\boxed{\text{Answer: } 18}` is read as a box
        inside = range(bisect_left(starts, words.start), bisect_left(starts, words.end))
        if _denied(text, words):
            denied.update(inside)
            if words.span and _checked(text, words):
                checks.append(words)
            words = _emptied(words)
        if not inside:
            found.append(words)
    # 2. Boxes, emptied if the words on either side deny them.
    for i, box in enumerate(boxed):
        if i and _RE.not_that.fullmatch(text[boxed[i - 1].end : box.start]):
            continue  # the box before it is what is stated in its place
        # The words before a box go back to the box before it at most.
        lead = text[max(boxed[i - 1].end if i else 0, box.start - _CLAUSE) : box.start]
        against = (
            _RE.before_box.search(_clause(lead))
            or _RE.after_box.match(text, box.end)
            or _RE.touching_before.search(lead)
            or _RE.touching_after.match(text, box.end)
            or _RE.subtracted.search(_formula_before(text, box.start))
        )
        found.append(_emptied(box) if i in denied or against else box)
    # 3. Statements that the next sentence takes back.
    for i, stated in enumerate(found):
        if taken_back(text[stated.end : stated.end + _CLAUSE], stated.span):
            found[i] = _emptied(stated)
    # 4. "If the answer is 18, then ..." after an answer of 18 checks it and takes nothing back.
    for check in checks:
        said = _RE.value.findall(check.span)[:1]
        earlier = [s for s in found if s.start < check.start]
        if said and earlier and said[0] in _RE.value.findall(max(earlier, key=_start).span):
            found = [s for s in found if s.start != check.start]
    # 5. A comment such as "The answer is correct" counts only if nothing else is stated.
    if not found:
        found = [s for s in _prose(text, comments=True) if not _denied(text, s)]
    return sorted(found, key=_start)


def _start(statement: Statement) -> int:
    return statement.start


def _checked(text: str, words: Statement) -> bool:
    """Whether the clause supposes what it states, and is not denied for another reason."""
    clause = _clause(text[max(0, words.start - _CLAUSE) : words.start])
    return bool(_RE.condition.search(clause)) and not _RE.negation.search(clause + words.span)


def without_request(text: str) -> str:
    """The text with blanks in place of what the prompts ask for: models repeat it, and it states
    no answer."""
    return _ASKED.sub(lambda copied: " " * len(copied[0]), text)


def unfinished(text: str, last: str) -> bool:
    """Whether a text without statements breaks off, asks, or in its `last` sentence supposes."""
    return bool(text.rstrip().endswith("?") or _RE.cut.search(text) or _RE.premise.match(last))


def _hashes(text: str) -> list[Statement]:
    return [
        Statement("hash", m[1], m.start(), m.end(1), line=m[1])
        for m in [*_RE.hash.finditer(text)][-MAX_STATEMENTS:]
    ]


def _prose(text: str, comments: bool = False) -> list[Statement]:
    """Prose statements, or those that comment on another one ("The answer is correct")."""
    found = []
    for match in [*_RE.prose.finditer(text)][-MAX_STATEMENTS:]:
        line = match["line"].partition("</answer>")[0]
        span = _sentence(line)
        ahead = text[max(0, match.start() - 30) : match.start()]
        if _RE.check.search(ahead) or _RE.heading.fullmatch(match["between"]):
            continue  # "to check our answer:" states none
        verb = match["verb"].lower()
        if _RE.others.search(ahead) and _RE.negation.match(span):
            continue  # "The other answers are wrong."
        comment = verb not in ":=" and _RE.comment.match(span)
        if bool(comment) != comments or (comment and comment["bare"] is None):
            continue
        end = match.start("line") + len(span)
        stated = Statement("prose", span, match.start(), end, match["between"], line)
        # Neither a question states anything ("The answer is 18?") nor a guess.
        guess = verb.startswith(("could", "may", "might"))
        if guess and not _RE.value.match(span.lstrip(" *$(")) and not boxes(span[:20]):
            continue  # "the answer may be found by"
        guess = guess or (verb.startswith("would") and _RE.condition.search(span))
        asked = line[len(span) :].startswith("?")
        found.append(_emptied(stated) if asked or guess else stated)
    if not comments:
        found += [
            Statement("prose", m["span"], m.start(), m.end(), line=m["span"])
            for m in [*_RE.named.finditer(text)][-MAX_STATEMENTS:]
        ]
        for language in candidates(text):
            found += _foreign(text, language)
    return found


def _foreign(text: str, language: Language) -> list[Statement]:
    """The prose statements of another language, those that their sentence denies emptied."""
    found = []
    for match in [*language.opener.finditer(text)][-MAX_STATEMENTS:]:
        span = _sentence(match["line"])
        end = match.start("line") + len(span)
        # The reason after the answer goes first, then the verb at its end.
        span = COPULA.sub("", REASON.split(span)[0])
        span = f"{(match['near'] or '').strip()} {span}".lstrip()
        # What follows a comma may negate something else, unless it is an alternative.
        first, *rest = re.split(r"[,;]\s+", span, maxsplit=1)
        # A denial that is the whole answer denies nothing: the answer may be "no".
        ahead = _clause(text[max(0, match.start() - _CLAUSE) : match.start()]).rstrip()
        ahead = ahead.rpartition(" ")[2] if language.spaced else ahead[-8:]  # "falsche Antwort"
        against = language.denies.search(first)
        whole = against and against[0] == first.strip(" *\"'")
        number = rest and _RE.number_alone.fullmatch(rest[0])  # "нет, 18"
        denied = language.denies.search(f"{ahead} {match['between'] or ''}") or (
            against and (number or not whole)
        )
        alternative = rest and language.denies.match(rest[0])
        asked = text[end : end + 1] == "?"
        denied = denied or alternative or asked or _guessed(text, match.start())
        statement = Statement("prose", span, match.start(), end, "", span, language.decimal_comma)
        found.append(_emptied(statement) if denied else statement)
    return found


def _sentence(line: str) -> str:
    stop = _RE.sentence_end.search(line)
    return line[: stop.start()] if stop else line


def _denied(text: str, words: Statement) -> bool:
    """Whether the clause denies or supposes what it states. A `####` line has no clause before."""
    if words.form != "prose":
        return words.form == "box"  # emptied already
    clause = _clause(text[max(0, words.start - _CLAUSE) : words.start])
    near = " ".join(clause.split()[-_NEAR:])  # "those that don't count ... give our answer:" states
    denied = _RE.negation.search(f"{near} {words.before}") or _RE.supposed.search(clause)
    return bool(denied) or _guessed(text, words.start)


def _guessed(text: str, start: int) -> bool:
    """Whether a word of doubt stands before a statement, perhaps with a comma between them."""
    return bool(_RE.guessed.search(text[max(0, start - 40) : start]))


def taken_back(text: str, span: str) -> bool:
    """Whether the words after an answer, stated in `span`, take it back."""
    if _RE.taken_back.search(text[:_CLAUSE]):
        return True
    # "In fact, it is 20" does and "in fact, 9 * 2 = 18" does not. "I meant" needs no value.
    said = set(_RE.value.findall(span))
    for fact in _RE.in_fact.finditer(text[:_CLAUSE]):
        values = _RE.value.findall(fact["rest"])
        name = _RE.name_instead.fullmatch(fact["rest"])
        other = fact["meant"] or (name and name[1].casefold() not in span.casefold())
        if values[-1] not in said if values else other:
            return True
    return False


def _clause(text: str) -> str:
    """The clause in which `text` breaks off."""
    return _RE.clause_end.split(text)[-1]


def _emptied(statement: Statement) -> Statement:
    return replace(statement, form="box", span="", before="", line="")


def boxes(text: str) -> list[Statement]:
    """Boxes with balanced braces; joined ones become one. An open last box has an empty span.

    They are read as written; whether the words around deny them is for `statements` to say.
    """
    found: list[Statement] = []
    position = 0
    while opening := _RE.box.search(text, position):
        position = opening.end() if opening["bare"] else closing_brace(text, opening.end())
        if not position:
            # The brace is never closed, so the rest of the text is inside the box.
            return [*found, Statement("box", "", opening.start(), len(text))]
        span = opening["bare"] or text[opening.end() : position - 1].strip()
        start = opening.start()
        formula = _formula_before(text, start)
        sign = _RE.signed.search(text[max(0, start - 8) : start])
        sign = sign or _RE.signed_inside.search(formula)
        if sign and not _RE.compound.search(span):
            span, start = f"-{span}", start - len(sign["sign"] or "-")
        # A box that holds nothing but a box stands for the inner one.
        inner = _RE.box.match(span)
        if inner and not inner["bare"] and closing_brace(span, inner.end()) == len(span):
            span = span[inner.end() : -1].strip()
        box = Statement("box", span, start, position, line=span)
        if found and _RE.join.fullmatch(joint := text[found[-1].end : box.start]):
            # Side by side they name one or the other: nothing says that both are meant.
            word = " or " if "or" in joint or not joint.strip(" $") else ", "
            last = found.pop()
            span = f"{last.span}{word}{box.span}"
            box = Statement("box", span, last.start, box.end, line=span)
        found.append(box)
    return found


def _formula_before(text: str, start: int) -> str:
    """The beginning of the formula that the box at `start` is in; empty outside of one."""
    ahead = text[max(0, start - _CLAUSE) : start]
    opened = max(ahead.rfind(r"\("), ahead.rfind(r"\["))
    if opened > max(ahead.rfind(r"\)"), ahead.rfind(r"\]")):
        return ahead[opened + 2 :]
    # A dollar sign with words behind it is an amount of money.
    *before, inside = _RE.formula_opens.split(ahead.rpartition("\n")[2])
    return "" if len(before) % 2 == 0 or _RE.word.search(inside) else inside


def closing_brace(text: str, start: int) -> int:
    """The position after the brace that closes the one opened before `start`; 0 when none does."""
    depth = 1
    # An escaped brace, such as `\{`, is matched as one sign and does not count.
    for match in re.compile(r"\\.|[{}]", re.DOTALL).finditer(text, start):
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if depth == 0:
            return match.end()
    return 0
