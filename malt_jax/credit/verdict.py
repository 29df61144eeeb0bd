"""Verdicts: what a turn says of the answer it judges, and whether it judges it rightly.

Unlike a value, a verdict is graded against the answer it is about, so it needs no sampling below
the turn (MarsRL, arXiv 2511.11373; RL Tango, 2505.15034).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from malt_jax.config.pipeline import RoleConfig
from malt_jax.errors import UserError
from malt_jax.tasks.custom import import_attribute
from malt_jax.tree.node import Node, Tree


class Verdict(NamedTuple):
    """What a turn says of the answer it judges."""

    approves: bool
    """True if it calls the answer right, False if it calls it wrong."""
    span: tuple[int, int] | None = None
    """Which characters of the turn say so; None if the function that read it does not tell."""


Reader = Callable[[str], Verdict | None]
"""Reads a turn; None if it holds no verdict."""

_WORD, _END = r"(?<!\w-)", r"(?!-\w)"  # no part of a longer word, such as `right-hand`
_BAD = _WORD + (
    r"(?:wrong|incorrect(?:ly)?|errors?|mistakes?|flaw(?:s|ed)?|invalid|inaccurate|miscalculat\w*)"
) + _END  # fmt: skip
_GOOD = rf"{_WORD}(?:right|correct(?:ly)?|valid|accurate|sound){_END}"
_NOT = r"(?:\bnot(?! only)|n't|n’t|\b(?:never|cannot|no longer|hardly|far from))"
_NONE = r"(?:no|zero|not any|without(?: any)?|nothing|none|free of|neither)"
_CLAUSE = r"[^.,;:!?]"
# What "no" is said of ends where the next statement begins: "no justification and is wrong".
_NEXT = r"\b(?:but|because|so|doubt|and (?:is|are|was|were|has|have|the|it|this|that|so|then))\b"
_SAME = rf"(?:(?!{_NEXT}){_CLAUSE})"
_NO_VERDICT = re.compile(
    # A question; what is asked for; what would hold; and the name of an answer that is not judged.
    rf"[^.;:!?]*\?|\b(?:whether|if)\b{_CLAUSE}*?\b(?:{_GOOD}|{_BAD})\b"
    rf"|\bwould (?:be|have been) {_GOOD}\b"
    r"|\b(?:the )?(?:correct|right) (?:(?!and\b)[\w-]+ ?){0,5}?(?:\b(?:is|are|was|should be)\b|:|=)"
)
_APPROVES_BY_NEGATION = re.compile(
    rf"\b{_NONE}\b{_SAME}{{0,30}}?\b{_BAD}\b(?: n?or (?:\w+ )??{_BAD}\b)*"
    rf"|{_NOT}(?: (?:find|see|spot|contain|have|make))?"
    r"(?: (?:any|an?|a single|(?:anything|any step|a step)(?: that is| that's| which is)?))?"
    rf" {_BAD}\b",
)
_REJECTS = re.compile(
    # A negation reaches over three words: "does not look right", "not a valid step".
    rf"\b{_BAD}\b|{_NOT}(?: [\w'’-]+){{0,3}} {_GOOD}\b|\bshould have\b"
    rf"|\b(?:no(?! doubt)|none|neither|nothing)\b{_CLAUSE}{{0,30}}?\b{_GOOD}\b"
    rf"|\b(?:almost|nearly|partly|partially) {_GOOD}\b|\b(?:too )?(?:high|low)\s*$"
)
_APPROVES = re.compile(rf"\b{_GOOD}\b|\bok(?:ay)?\b|\bi agree\b")
_CORRECTS = re.compile(
    r"(?<!as it )\bshould (?:be|equal|read)\b|\binstead of\b|\b(?:except|apart from|other than)\b"
)


def read_verdict(text: str) -> Verdict | None:
    """The verdict in a critique as the built-in verifier prompts ask for it, in English.

    They ask to name the first wrong step or to say that every step is right, so a critique that
    calls anything wrong rejects, whatever else it approves of; one that calls something right and
    nothing wrong approves. "No errors" approves, "not the right answer" rejects. A critique that
    ends with `ok`, `high` or `low`, as the embedded model's do, says so in a word. Others hold no
    verdict: bare computations, questions, "the correct answer is 12", and approval beside a
    correction ("step 1 is right. Step 2 should be 12."). The span is that of the last words that
    say so, with their negation.
    """
    folded, places = _fold(text)
    # Negated faults first, and out of the text, so that "no errors" is not read as "errors".
    rest = _APPROVES_BY_NEGATION.sub(_blank, folded)
    unsaid = _NO_VERDICT.sub(_blank, rest)
    found = list(_REJECTS.finditer(unsaid))
    approves = not found
    if approves and not _CORRECTS.search(rest):
        found = [*_APPROVES_BY_NEGATION.finditer(folded), *_APPROVES.finditer(unsaid)]
    if not found:
        return None
    start, end = max(match.span() for match in found)
    return Verdict(approves, (places[start], places[end - 1] + 1))


def _blank(match: re.Match[str]) -> str:
    """Blanks in place of what was matched, so that all that follows keeps its place."""
    return " " * len(match[0])


def _fold(text: str) -> tuple[str, list[int]]:
    """The text in one case and with single blanks, and the place in `text` of each character."""
    characters: list[str] = []
    places: list[int] = []
    for place, character in enumerate(text):
        if not character.isspace():
            # Case folding may make two characters of one.
            characters += (folded := character.casefold())
            places += [place] * len(folded)
        elif characters and characters[-1] != " ":
            characters.append(" ")
            places.append(place)
    return "".join(characters).removesuffix(" "), places


def verdict_readers(roles: Iterable[RoleConfig]) -> dict[str, Reader]:
    """The reader of every role that has one (`RoleConfig.verdict`); imports those of the user."""
    readers: dict[str, Reader] = {}
    for index, role in enumerate(roles):
        if role.verdict == "auto" and not role.answers:
            readers[role.name] = read_verdict
        elif ":" in role.verdict:
            field = f"pipeline.roles.{index}.verdict"
            function = import_attribute(role.verdict, field)
            if not callable(function):
                raise UserError(f"{field}: {role.verdict!r} is no function from a text to a bool.")
            readers[role.name] = _reader(function, f"{field}: {role.verdict!r}")
    return readers


def _reader(function: Callable[[str], bool | None], place: str) -> Reader:
    """The reader that a user's function from a text to True, False or None makes."""

    def read(text: str) -> Verdict | None:
        try:
            approves = function(text)
        except (Exception, SystemExit) as error:  # whatever the user's function raises
            raise UserError(f"{place} raised {type(error).__name__}: {error}") from error
        return None if approves is None else Verdict(bool(approves))

    return read


def judged_answers(tree: Tree) -> dict[str, Node | None]:
    """For every node id, the latest earlier turn of its path that states an answer, if any."""
    latest: dict[str | None, Node | None] = {None: None}  # what a child of the node looks back at
    judged: dict[str, Node | None] = {}
    for node in tree.nodes:  # parents come before their children
        judged[node.id] = latest[node.parent]
        latest[node.id] = node if node.correct is not None else latest[node.parent]
    return judged


def verdict_agreement(tree: Tree, readers: Mapping[str, Reader]) -> dict[str, float]:
    """1 where a turn's verdict fits `correct` of the answer it judges, else 0, by node id.

    Nodes without a verdict, without an earlier answer, or of a role without a reader have none.
    """
    judged = judged_answers(tree)
    agreement = {}
    for node in tree.nodes:
        answer, read = judged[node.id], readers.get(node.role)
        verdict = read(node.completion) if read and answer else None
        if answer and verdict:
            agreement[node.id] = float(verdict.approves == answer.correct)
    return agreement
