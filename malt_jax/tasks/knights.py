"""A generated task: knights who tell the truth and knaves who lie, e.g. ``b*-c,-a+d,c*d,-a*-b``.

Four people, a to d, make one claim each about two others: ``b*-c`` says that b is a knight and c is
not, ``-a+d`` that a is no knight or d is one. Exactly one assignment fits all claims; it is written
``=1010``, with 1 for a knight. An answer is checked claim by claim, and a failed check names a
claim that does not fit. So it says where to look, but not what to change: that claim holds, or its
speaker changes, or somebody it speaks of.
"""

from __future__ import annotations

import random
import re

from malt_jax.tasks.generated import Generated

PEOPLE = "abcd"
ASSIGNMENTS = [format(number, f"0{len(PEOPLE)}b") for number in range(1 << len(PEOPLE))]
EVERY = (1 << len(ASSIGNMENTS)) - 1
"""A set of assignments is a number with one bit for each of them; this is the set of all."""
TRUE = [
    sum(1 << n for n, knights in enumerate(ASSIGNMENTS) if knights[person] == "1")
    for person in range(len(PEOPLE))
]
"""By person: the assignments in which they are a knight."""
ANSWER = re.compile(rf"=([01]{{{len(PEOPLE)}}})\s*$")
"""The final answer is the last thing in a turn, e.g. ``=1010``."""
CLAIM = re.compile(rf"(-?)([{PEOPLE}])([*+])(-?)([{PEOPLE}])")

Claim = tuple[int, bool, str, int, bool]
"""First person and whether they are claimed to be a knight, `*` (and) or `+` (or), the second."""


def draw(rng: random.Random) -> str:
    """A random question with exactly one solution."""
    while True:
        claims = []
        for speaker in range(len(PEOPLE)):
            first, second = sorted(rng.sample([p for p in range(len(PEOPLE)) if p != speaker], 2))
            signs = [rng.random() < 0.5 for _ in range(2)]
            claims.append((first, signs[0], rng.choice("*+"), second, signs[1]))
        if len(solutions(claims)) == 1:
            return ",".join(map(claim_text, claims))


def claim_text(claim: Claim) -> str:
    """``claim_text((1, True, "*", 2, False)) == "b*-c"``."""
    first, first_is, joint, second, second_is = claim
    sign = {True: "", False: "-"}
    return f"{sign[first_is]}{PEOPLE[first]}{joint}{sign[second_is]}{PEOPLE[second]}"


def parse_question(text: str) -> list[Claim]:
    """The claims of a to d; ValueError if ``text`` is no such question."""
    claims = [CLAIM.fullmatch(claim) for claim in text.split(",")]
    if len(claims) != len(PEOPLE) or not all(claims):
        raise ValueError(f"not a knights question: {text!r}, expected four claims such as b*-c")
    return [(PEOPLE.index(m[2]), not m[1], m[3], PEOPLE.index(m[5]), not m[4]) for m in claims if m]


def parts(claim: Claim, knights: str) -> tuple[bool, bool, bool]:
    """Whether the two halves of a claim hold, and the whole, if `knights` (``"1010"``) is so."""
    first, first_is, joint, second, second_is = claim
    a, b = (knights[first] == "1") == first_is, (knights[second] == "1") == second_is
    return a, b, (a and b) if joint == "*" else (a or b)


def solutions(claims: list[Claim]) -> list[str]:
    """All assignments under which knights' claims hold and knaves' do not."""
    fitting = EVERY
    for is_knight, (first, first_is, joint, second, second_is) in zip(TRUE, claims, strict=True):
        a, b = (TRUE[p] if is_ else ~TRUE[p] for p, is_ in ((first, first_is), (second, second_is)))
        fitting &= ~(is_knight ^ (a & b if joint == "*" else a | b))
    return [knights for number, knights in enumerate(ASSIGNMENTS) if fitting >> number & 1]


def solve(text: str) -> str:
    """The answer of a question; ValueError unless exactly one assignment fits."""
    found = solutions(parse_question(text))
    if len(found) != 1:
        raise ValueError(f"{text!r} has {len(found)} solutions, expected one")
    return found[0]


def extract_answer(text: str) -> str | None:
    """The assignment at the end of a turn; None without one."""
    match = ANSWER.search(text)
    return match[1] if match else None


GENERATED = Generated(
    name="knights",
    description="knights and knaves in one line, for a small model trained in minutes",
    draw=draw,
    solve=solve,
    extract=extract_answer,
    level=lambda text: f"knights: {solve(text).count('1')}",
    mismatch=lambda right: (f"only {right} fits all claims", "write that"),
    answer_format="End with an equals sign and a 1 for each knight, a 0 for each knave.",
)
task = GENERATED.task
