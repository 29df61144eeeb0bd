r"""Grading numbers, exactly.

A statement of the final answer (see `statements`; without one, the last number of the text) must
hold one number. What is read:

- thousands separators `1,234` `1{,}234` (malformed ones, `12,34`, make it unreadable);
- decimals, scientific notation (`1.5e3`, `1.5 \times 10^3`), fractions (`3/4`, `\frac{3}{4}`, `½`,
  mixed `1 1/2`), negatives (`-5`, `−5`, `-$5`, `negative 5`), multipliers (`2 million`, `5k`);
- currency signs and units are dropped, and **the percent sign is a unit**: `18%` is 18 and not
  0.18, as in the published answers; 50 cents is 50 and 5 dozen is 5;
- a chain of equations counts by its last right-hand side: `9 * 2 = 18` is 18.

Values are compared as exact fractions: 0.333 is not 1/3. A statement with two different numbers, a
hedge ("17 or 18"), a negation ("not 18"), a bound ("at least 18") or anything left to compute
(`2^{10}`, `\sqrt{324}`, `9 + 9`, `3\pi`) has no answer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from malt_jax.tasks.base import Grade, Question
from malt_jax.tasks.graders.statements import MAX_SPAN, statements

MAX_DIGITS = 60
MAX_EXPONENT = 300


class Torn(ValueError):
    """The words don't say one number."""


_CHARACTERS = str.maketrans(
    {"−": "-", "﹣": "-", "－": "-", "‐": "-", "‑": "-", "–": "-", "，": ",", "．": ".", "％": "%"}
    | {"€": "", "£": "", "¥": "", "₹": "", "¢": "", "$": "", "`": "", "≈": "=", "→": "=", "⁄": "/"}
    | {"\u00a0": " ", "\u202f": " ", "\u2009": " "}
    | {chr(0xFF10 + i): str(i) for i in range(10)}
    | dict(zip("½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞",
               [" 1/2", " 1/3", " 2/3", " 1/4", " 3/4", " 1/5", " 2/5", " 3/5", " 4/5", " 1/6",
                " 5/6", " 1/8", " 3/8", " 5/8", " 7/8"], strict=True))
)  # fmt: skip

# Applied in order; each turns one way of writing into the plain one.
_REWRITES = [
    (re.compile(pattern, re.IGNORECASE), new)
    for pattern, new in [
        (r"<<[^<>\n]*>>", ""),  # GSM8K's calculator notes
        (r"</?[a-z]+>", " "),  # tags around an answer
        (r"\*\*|__|~", ""),
        (r"\\(?:left|right|displaystyle|,|!|;|:|\(|\)|\[|\])", ""),
        (r"\\(?:%|\$)", lambda m: "%" if "%" in m[0] else ""),
        (r"(?<=[0-9])\{,\}(?=[0-9]{3})", ","),
        (r"\\(?:text|mathrm|mathbf|textbf|operatorname|boxed|fbox)\s*\{([^{}]*)\}", r" \1 "),
        (r"\\(?:approx|rightarrow|to|implies|Rightarrow)(?![a-z])|-+>|=+>", "="),
        (r"\\[dt]?frac\s*\{\s*([0-9.,]+)\s*\}\s*\{\s*([0-9.,]+)\s*\}", r" \1/\2 "),
        (r"\\[dt]?frac\s*([0-9])\s*([0-9])", r" \1/\2 "),
        (r"(?<=[0-9])\s*(?:\\times|\\cdot|×|\*|x)\s*10\s*\^\s*\{?\s*([-+]?[0-9]+)\s*\}?", r"e\1"),
        (r"\^\s*\{?\s*\\circ\s*\}?|\\degree", " degrees"),
        (r"(?<=[a-z])\s*(?:\^\s*\{?\s*[23]\s*\}?|[²³])", ""),  # units: cm^2, m³
        (r"\b(?:rs\.?|usd|eur|gbp|us)\s*(?=[-0-9.])", ""),
        (r"\b(?:negative|minus)\s+(?=[0-9.])", "-"),
        (r"(?<=[0-9])\s*/\s*(?=[0-9])", "/"),
        (r"(?<=[0-9a-z%])\s+\((?!\s*-?[0-9.,]+\s*\)?\s*$)[^()]*\)", ""),  # remarks: 18 (9 each)
    ]
]

_MIXED = re.compile(r"(?<![0-9./,])([0-9]{1,9})\s+(?:and\s+)?([0-9]{1,9})/([0-9]{1,9})(?![0-9./])")
_RUN = re.compile(r"[0-9.,:/^]*[0-9][0-9.,:/^]*(?:[eE][-+]?[0-9]+)?")
_REAL = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+"
_BODY = re.compile(rf"(?P<a>{_REAL})(?:/(?P<b>{_REAL})|[eE](?P<e>[-+]?[0-9]+))?")
_MULTIPLIERS = {
    "tenths": Fraction(1, 10), "hundredths": Fraction(1, 100), "thousandths": Fraction(1, 1000),
    "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9,
    "trillion": 10**12,
}  # fmt: skip
_SHORT = {"k": 10**3, "K": 10**3, "M": 10**6, "bn": 10**9, "B": 10**9}  # these stand attached
_MULTIPLIER = re.compile(rf"(?:[\s-]*({'|'.join(_MULTIPLIERS)})|({'|'.join(_SHORT)}))(?![A-Za-z&])")
_UNKNOWN = re.compile(r"\s*[xyzni](?![A-Za-z])|\s*\\?pi\b|!")  # 3x, 3n, 3i, 3 pi, 3!

_NEGATED = re.compile(r"\b(?:not|never|neither|wrong|incorrect|cannot)\b|n['’]t\b", re.IGNORECASE)
_DENIED = re.compile(r"(?:\b(?:not|never)|n['’]t)(?:\s+[A-Za-z]+){0,2}\W*$", re.IGNORECASE)
_BOUND = re.compile(
    r"\b(?:less|more|greater|fewer|under|over|below|above|between|least|most|than|either|up to)\b",
    re.IGNORECASE,
)
_HEDGE = re.compile(r"[0-9].*\b(?:or|maybe|perhaps|possibly)\b.*[0-9]", re.IGNORECASE)
_COMPUTE = re.compile(r"\\?sqrt|√|π|\\(?:log|ln|sin|cos|tan|infty|neq|leq?|geq?)\b|[<>≤≥≠²³]|\\pi")
_EXPLAINED = re.compile(
    r"(?<=[0-9])(.*?)[\s,]+(?:because|since|as|which|per|every|each|for|after|so|if|when|where|from)"
    r"\s.*",
    re.IGNORECASE,
)
_PARTS = re.compile(r";|,\s|\sand\s")
_LEAD = re.compile(
    r"[^0-9A-Za-z\\]*(?:(?:the\s+)?(?:final\s+)?answer(?:\s+is)?|about|approximately|around|"
    r"[a-z]\s*=|\\[a-z]+|usd|eur|rs|us|negative|minus)?[^0-9A-Za-z]*[0-9]",
    re.IGNORECASE,
)


def value_of(words: str) -> Fraction:
    """The one number that `words` say. Raises `Torn` when they say none, several, or a task."""
    if len(words) > MAX_SPAN or refused(words):
        raise Torn("long, negated or hedged")
    words = plain(words)
    first = re.search("[0-9]", words)
    if first is None or _BOUND.search(words[: first.start()]):
        raise Torn("no number, or a bound")
    words = _EXPLAINED.sub(r"\1", words, count=1)
    values = set()
    for part in _PARTS.split(words):
        *left, part = part.split("=")
        if _COMPUTE.search(part):
            raise Torn("left to compute")
        numbers = _numbers(part)
        if len(numbers) > 1:
            raise Torn("several numbers")
        values.update(numbers)
        values.update(_number(w.strip(), "") for w in left if _BODY.fullmatch(w.strip()))  # 17 = 18
    if len(values) != 1:
        raise Torn("no number, or several")
    return values.pop()


def refused(words: str) -> bool:
    """Whether the words deny what they state, or state one of several numbers."""
    return bool(_NEGATED.search(words) or _HEDGE.search(words))


def plain(words: str) -> str:
    """The same words with every accepted way of writing a number turned into the plain one."""
    words = words.translate(_CHARACTERS)
    for pattern, new in _REWRITES:
        words = pattern.sub(new, words)
    return _MIXED.sub(lambda m: f"{int(m[1]) * int(m[3]) + int(m[2])}/{m[3]}", words)


def _numbers(words: str) -> list[Fraction]:
    values = []
    for run in _RUN.finditer(words):
        before = words[: run.start()]
        if before[-1:].isalpha() or before[-1:] == "_":
            continue  # a name: x1, CO2
        body = run[0].strip(",:").rstrip("./:,")
        values.append(_number(body, words[run.start() + len(run[0]) :]) * _sign(before))
    return values


def _number(body: str, after: str) -> Fraction:
    match = _BODY.fullmatch(body)
    if match is None or len(body) > MAX_DIGITS or _UNKNOWN.match(after):
        raise Torn("not a number")
    value = Fraction(match["a"].replace(",", ""))
    if match["e"]:
        if abs(int(match["e"])) > MAX_EXPONENT:
            raise Torn("out of range")
        value *= Fraction(10) ** int(match["e"])
    if match["b"]:
        divisor = Fraction(match["b"].replace(",", ""))
        if divisor == 0:
            raise Torn("division by zero")
        value /= divisor
    while multiplier := _MULTIPLIER.match(after):
        value *= (_MULTIPLIERS | _SHORT)[multiplier[1] or multiplier[2]]
        after = after[multiplier.end() :]
    return value


def _sign(before: str) -> int:
    """-1 behind a minus sign that has nothing to subtract from; raises `Torn` where it has."""
    head = before.rstrip(" ({")
    if not head.endswith("-"):
        return 1
    left = head[:-1].rstrip()
    adjacent = head == before.rstrip("({")
    if not left or (adjacent and not (head[:-1][-1:].isalnum() or head[:-1][-1:] in ")%")):
        return -1
    raise Torn("a difference")


def canonical(value: Fraction) -> str:
    """`18`, `-2.5` or `1/3`: one string for one value."""
    numerator, denominator = value.numerator, value.denominator
    if denominator == 1:
        return str(numerator)
    for places in range(1, 13):
        if 10**places % denominator == 0:
            digits = str(abs(numerator) * 10**places // denominator).rjust(places + 1, "0")
            return f"{'-' * (numerator < 0)}{digits[:-places]}.{digits[-places:]}"
    return f"{numerator}/{denominator}"


def final_number(text: str) -> Fraction | None:
    """The number of the last statement; without a readable one, the last number after it."""
    rest = text
    for statement in reversed(statements(text)):
        if statement.form == "prose" and not re.search("[0-9]", statement.span):
            if _NEGATED.search(statement.before + statement.span):
                return None
            continue  # words only
        if statement.form == "hash" and not _LEAD.match(plain(statement.span[:MAX_SPAN])):
            rest = text[statement.end :]  # a Markdown heading
            break
        try:
            return value_of(f"{statement.before} {statement.span}")
        except Torn:
            return None
    return _last_number(rest)


def _last_number(text: str) -> Fraction | None:
    """The last number of `text`, unless it is denied, hedged or part of something to compute."""
    lines = [s for s in re.split(r"\n|(?<=[.!?])\s", text) if re.search("[0-9]", s)]
    if not lines:
        return None
    line = re.sub(r"^\s*[-*•]\s+", "", lines[-1])
    if len(line) > MAX_SPAN:
        line = line[-MAX_SPAN:].partition(" ")[2]
    words = plain(line).rpartition("=")[2]
    runs = list(_RUN.finditer(words))
    if not runs or _HEDGE.search(words):
        return None
    before, after = words[: runs[-1].start()], words[runs[-1].end() :]
    unfinished = re.search(r"[0-9)]\s*[-+*/×÷]\s*$", before) or _COMPUTE.search(words)
    if unfinished or _DENIED.search(before) or _NEGATED.search(after):
        return None
    try:
        return (_numbers(words) or [None])[-1]
    except Torn:
        return None


@dataclass(frozen=True)
class NumberGrader:
    """Exact comparison of one number with the reference."""

    def extract(self, text: str) -> str | None:
        value = final_number(text)
        return None if value is None else canonical(value)

    def grade(self, texts: Sequence[str], questions: Sequence[Question]) -> list[Grade]:
        grades = []
        for text, question in zip(texts, questions, strict=True):
            parsed = self.extract(text)
            correct = parsed is not None and parsed == canonical(value_of(question.answer))
            grades.append(Grade(parsed, correct))
        return grades

    def check(self, question: Question) -> str | None:
        """Why the reference answer can't be graded; None when it can."""
        try:
            value_of(question.answer)
        except Torn as torn:
            return f"the answer {question.answer[:60]!r} is not one number ({torn})"
        return None
