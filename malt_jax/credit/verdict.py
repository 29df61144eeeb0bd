"""Verdicts: does a turn that judges an earlier answer judge it rightly?

Unlike a value, a verdict is graded against the answer it is about, so it needs no sampling below
the turn (MarsRL, arXiv 2511.11373; RL Tango, 2505.15034).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

from malt_jax.config.pipeline import RoleConfig
from malt_jax.errors import UserError
from malt_jax.tasks.custom import import_attribute
from malt_jax.tree.node import Node, Tree

Parser = Callable[[str], bool | None]
"""Reads a turn: True if it approves of the answer, False if it rejects it, None if neither."""

_BAD = (
    r"(?:wrong|incorrect(?:ly)?|errors?|mistakes?|flaw(?:s|ed)?|invalid|inaccurate|miscalculat\w*)"
)
_GOOD = r"(?:right|correct(?:ly)?|valid|accurate|sound)"
_NOT = r"(?:\bnot(?! only)|n't|n’t|\b(?:never|cannot|no longer|hardly|far from))"
_NONE = r"(?:no|not any|without(?: any)?|nothing|none|free of|neither)"
_CLAUSE = r"[^.,;:!?]"
_NO_VERDICT = re.compile(
    # A question; what is asked for; what would hold; and the name of an answer that is not judged.
    rf"[^.;:!?]*\?|\b(?:whether|if)\b{_CLAUSE}*?\b(?:{_GOOD}|{_BAD})\b"
    rf"|\bwould (?:be|have been) {_GOOD}\b"
    r"|\b(?:the )?(?:correct|right) (?:(?!and\b)[\w-]+ ?){0,5}?(?:\b(?:is|are|was|should be)\b|:|=)"
)
_APPROVES_BY_NEGATION = re.compile(
    rf"\b{_NONE}\b{_CLAUSE}{{0,30}}?\b{_BAD}\b"
    rf"|{_NOT}(?: (?:find|see|spot|contain|have|make))?(?: (?:any|an?|a single))? {_BAD}\b",
)
_REJECTS = re.compile(
    # A negation reaches over three words: "does not look right", "not a valid step".
    rf"\b{_BAD}\b|{_NOT}(?: [\w'’-]+){{0,3}} {_GOOD}\b|\bshould have\b"
    rf"|\b(?:no(?! doubt)|none|neither|nothing)\b{_CLAUSE}{{0,30}}?\b{_GOOD}\b"
    rf"|\b(?:almost|nearly|partly|partially) {_GOOD}\b|\b(?:too )?(?:high|low)\s*$"
)
_APPROVES = re.compile(rf"\b{_GOOD}\b|\bok(?:ay)?\b|\bi agree\b")
_CORRECTS = re.compile(r"(?<!as it )\bshould (?:be|equal|read)\b|\binstead of\b")


def read_verdict(text: str) -> bool | None:
    """The verdict in a critique as the built-in verifier prompts ask for it, in English.

    They ask to name the first wrong step or to say that every step is right, so a critique that
    calls anything wrong rejects, whatever else it approves of; one that calls something right and
    nothing wrong approves. "No errors" approves, "not the right answer" rejects. A critique that
    ends with `ok`, `high` or `low`, as the embedded model's do, says so in a word. Others hold no
    verdict: bare computations, questions, "the correct answer is 12", and approval beside a
    correction ("step 1 is right. Step 2 should be 12.").
    """
    text = " ".join(text.casefold().split())
    # Negated faults first, and out of the text, so that "no errors" is not read as "errors".
    rest, negated = _APPROVES_BY_NEGATION.subn(" ", text)
    unsaid = _NO_VERDICT.sub(" ", rest)
    if _REJECTS.search(unsaid):
        return False
    return True if not _CORRECTS.search(rest) and (negated or _APPROVES.search(unsaid)) else None


def verdict_parsers(roles: Iterable[RoleConfig]) -> dict[str, Parser]:
    """The parser of every role that has one (`RoleConfig.verdict`); imports those of the user."""
    parsers: dict[str, Parser] = {}
    for index, role in enumerate(roles):
        if role.verdict == "auto" and not role.answers:
            parsers[role.name] = read_verdict
        elif ":" in role.verdict:
            field = f"pipeline.roles.{index}.verdict"
            parser = import_attribute(role.verdict, field)
            if not callable(parser):
                raise UserError(f"{field}: {role.verdict!r} is no function from a text to a bool.")
            parsers[role.name] = parser
    return parsers


def judged_answers(tree: Tree) -> dict[str, Node | None]:
    """For every node id, the latest earlier turn of its path that states an answer, if any."""
    latest: dict[str | None, Node | None] = {None: None}  # what a child of the node looks back at
    judged: dict[str, Node | None] = {}
    for node in tree.nodes:  # parents come before their children
        judged[node.id] = latest[node.parent]
        latest[node.id] = node if node.correct is not None else latest[node.parent]
    return judged


def verdict_agreement(tree: Tree, parsers: Mapping[str, Parser]) -> dict[str, float]:
    """1 where a turn's verdict fits `correct` of the answer it judges, else 0, by node id.

    Nodes without a verdict, without an earlier answer, or of a role without a parser have none.
    """
    judged = judged_answers(tree)
    agreement = {}
    for node in tree.nodes:
        answer, parser = judged[node.id], parsers.get(node.role)
        verdict = parser(node.completion) if parser and answer else None
        if answer and verdict is not None:
            agreement[node.id] = float(verdict == answer.correct)
    return agreement
