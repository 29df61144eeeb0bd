r"""Grading numbers, exactly.

A statement of the final answer (see `statements`; without one, the last number of the text) must
hold one number. What is read:

- thousands separators `1,234` `1{,}234` `1'234` `1_234` (malformed ones make it unreadable);
- decimals, scientific notation (`1.5e3`, `1.5 \times 10^3`), fractions (`3/4`, `\frac{3}{4}`, `½`,
  mixed `1 1/2`), negatives (`-5`, `−5`, `-$5`, `negative 5`), multipliers (`2 million`, `5k`);
- currency signs and units are dropped, and **the percent sign is a unit**: `18%` is 18 and not
  0.18, as in the published answers; 50 cents is 50 and 5 dozen is 5;
- a chain of equations counts by its last right-hand side: `9 * 2 = 18` is 18.

Values are compared as exact fractions: 0.333 is not 1/3. A statement has no answer if it holds two
different numbers, in figures or words ("18 or nineteen"; "18 apples, not 17" says one), a hedge, a
negation ("not 18"), a bound ("at least 18") or anything left to compute (`2^{10}`, `9 + 9`, `3\pi`,
"half of 18"). Around a number only what is known to be harmless may stand, blanks, punctuation, a
unit: a foreign digit, a letter O, a dash or an exponent there changes it, so it is not read. Words
that are a number alone ("eighteen") are no answer.
"""

from __future__ import annotations

import re
import unicodedata
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
    dict.fromkeys("−﹣－‐‑–➖⁻", "-")
    | {"，": ",", "．": ".", "％": "%", "≈": "=", "→": "=", "⁄": "/", "`": ""}
    | dict.fromkeys("‘’´", "'")
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
        (r"</?[a-z]+>|<\|[^<>|]*\|>", " "),  # tags around an answer, tokens that end a turn
        (r"(?:\b(?:US|CA?|AU?|NZ|HK|R|S))?\\?\$", ""),
        (r"\b(?:(?:rs|approx)\.|usd|eur|gbp|cad|aud|inr|jpy|cny|rs|us)\s*(?=[-0-9.])", ""),
        (r"\banswer\s+[-—]\s+", "answer: "),
        (r"(?<=[0-9])(?:\\[,!:; ]|,\\!\s?|\{,\}|[\u00a0\u202f\u2009'_])(?=[0-9]{3}(?![0-9]))", ","),
        (r"\\[,!:;]|[\u00a0\u202f\u2009]|~(?![0-9])|(?<![0-9])~", " "),
        (r"(?<![0-9])__|__(?![0-9])", ""),
        (r"(?<![0-9A-Za-z])_(?=[-+$0-9])|(?<=[0-9%])_(?![0-9A-Za-z])", ""),
        (
            r"\*+(?!\*|\s*(?:[0-9(]|[a-z]\b))|(?<![0-9)]\s)(?<!\b[a-z]\s)(?<![0-9a-z)*])\*+(?=\S)",
            "",
        ),
        (r"\\(?:left|right|displaystyle|\(|\)|\[|\])", ""),
        (r"\\(?=%)|/-(?!\S)", ""),
        (r"\\(?:text|mathrm|mathbf|textbf|operatorname|boxed|fbox)\s*\{([^{}]*)\}", r" \1 "),
        (r"\\(?:approx|rightarrow|to|implies|Rightarrow)(?![a-z])|-+>|=+>", "="),
        (r"\\[cdt]?frac\s*\{\s*(-?[0-9.,]+)\s*\}\s*\{\s*([0-9.,]+)\s*\}", r" \1/\2 "),
        (r"\\[cdt]?frac\s*([0-9])\s*([0-9])", r" \1/\2 "),
        (r"(?<=[0-9])\s*(?:\\times|\\cdot|×|\*|x)\s*10\s*\^\s*\{?\s*([-+]?[0-9]+)\s*\}?", r"e\1"),
        (r"\^\s*\{?\s*\\circ\s*\}?|\\degree", " degrees"),
        (r"(?<=[a-z])\s*(?:\^\s*\{?\s*[23]\s*\}?|[²³])", ""),  # units: cm^2, m³
        (r"\b(?:negative|minus)\s+(?=[0-9.])", "-"),
        (r"(?<=[0-9])\s*/\s*(?=[0-9])", "/"),
    ]
]

_MIXED = re.compile(r"(?<![0-9./,])([0-9]{1,9})\s+(?:and\s+)?([0-9]{1,9})/([0-9]{1,9})(?![0-9./])")
_RUN = re.compile(r"[0-9.,:/^]*[0-9][0-9.,:/^]*(?:[eE][-+]?[0-9]+)?")
_REAL = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+"
_BODY = re.compile(rf"(?P<a>{_REAL})(?:/(?P<b>{_REAL})|[eE](?P<e>[-+]?[0-9]+))?")
_MULTIPLIERS = {
    "halves": Fraction(1, 2), "thirds": Fraction(1, 3), "quarters of": Fraction(1, 4),
    "tenths": Fraction(1, 10), "hundredths": Fraction(1, 100), "thousandths": Fraction(1, 1000),
    "hundred": 100, "thousand": 10**3, "lakh": 10**5, "million": 10**6, "mln": 10**6,
    "mil": 10**6, "crore": 10**7, "billion": 10**9, "bln": 10**9, "trillion": 10**12,
    "quadrillion": 10**15, "quintillion": 10**18,
}  # fmt: skip
_SHORT = {"k": 10**3, "K": 10**3, "M": 10**6, "bn": 10**9, "B": 10**9}  # these stand attached
_MULTIPLIER = re.compile(
    rf"(?:[\s-]*({'|'.join(_MULTIPLIERS)})s?|({'|'.join(_SHORT)}))(?![A-Za-z&])"
)
_UNKNOWN = re.compile(r"\s*[xyzni](?![A-Za-z])|\s*\\?pi\b|!")  # 3x, 3n, 3i, 3 pi, 3!
_LEFT = re.compile(r"(?:^|[-+\s()\[\]{}\"'“”:=,;#>])$")  # what may touch a number
_RIGHT = re.compile(
    rf"(?![,.]?O)(?:$|[-\s()\[\]{{}}\"'“”:=,;.!?%°/…—]|(?:{'|'.join(_SHORT)}|[mhsgtLWVNFC])(?![A-Za-z0-9])"
    r"|(?!ll)[A-Za-z]{2,}(?![0-9]))"  # 18kg
)

_ONES = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
    "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen",
    "nineteen",
]  # fmt: skip
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_WORDS = (
    {word: i for i, word in enumerate(_ONES)}
    | {word: 10 * i for i, word in enumerate(_TENS, 2)}
    | {word: _MULTIPLIERS[word] for word in ("hundred", "thousand", "million")}
)
# "One" is mostly a pronoun; "the two" and "five-dollar" say no value.
_SPELLED = re.compile(
    rf"(?<!\bthe )(?<!\ball )\b(?:one(?=[\s-](?:hundred|thousand))|{'|'.join([*_ONES[2:], *_TENS])}"
    rf"|zero)(?:[\s-]+(?:and\s+)?(?:{'|'.join(_WORDS)}))*\b(?!-[a-z])",
    re.IGNORECASE,
)

_NOT = r"(?:\b(?:not|never|cannot|(?:is|are|was|ca|do|does|ai)nt)\b|n['’‘´`]t\b)"
_DOUBTED = r"\b(?:doubt|anything but|far from|other than)\b"
_NEGATED = re.compile(rf"{_NOT}|{_DOUBTED}|\b(?:neither|wrong|incorrect)\b", re.IGNORECASE)
_INSTEAD = re.compile(r"(?:,\s*|\s(?=and|but))(?:(?:and|but)\s+)?not\s+(?=[^a-z]*[0-9])", re.I)
_DENIED = re.compile(
    rf"{_NOT}(?:(?:\s+[a-z]+){{0,2}}\W*$|\s+(?:think|believe|be)\b)|{_DOUBTED}|\bbetween\b",
    re.IGNORECASE,
)
_HEDGED = re.compile(
    r"\b(?:or|maybe|perhaps|possibly|alternatively|otherwise|actually|instead|rather|versus|vs|"
    r"either|at least|at most|up to|and (?:up|above|below|over|under|an? (?:half|third|quarter))|"
    r"inf|infinity|nan)\b",
    re.IGNORECASE,
)
_BOUND = re.compile(
    r"\b(?:less|more|greater|fewer|under|over|below|above|between|least|most|than|either|up to|"
    r"(?:mini|maxi)mum of)\b",
    re.IGNORECASE,
)
_HEDGE = re.compile(r"[0-9].*\b(?:or|maybe|perhaps|possibly)\b.*[0-9]", re.IGNORECASE)
_COMPUTE = re.compile(
    r"\\[a-z]|[<>π√∛]|\b(?:log|ln|sin|cos|tan|sqrt|root|squared|cubed|factorial)\b"
    r"|\b(?:half|twice|thrice|double|triple|third|quarter|fourth|fifth|tenth)\s+(?:of\s+)?[-.0-9]"
    r"|(?<=[0-9a-z)}%])(?<![0-9]e)\s*[+*^]"
    r"|(?<![a-z])\s*-\s*(?:[b-z](?![a-z'])|\W*$)",
    re.IGNORECASE,
)
# What may hold other numbers: a reason, a rate or time, and a reckoning in parentheses.
_ASIDE = re.compile(
    r"[\s,]+(?:because|since)\s.*|\s(?:per|every|each|for|after)\s+[0-9]+(?=\s+[a-z])"
    r"|\s\((?=[^()]*(?:\b(?:each|per|times|at)\b|[0-9a-z]\s*[+*/×÷]\s*[0-9]|\s[-x]\s+[0-9]))"
    r"[^()=]*\)",
    re.IGNORECASE,
)
_PARTS = re.compile(r";|,\s|\sand\s")
_LEAD = re.compile(
    r"[^0-9A-Za-z\\]*(?:(?:the\s+)?(?:final\s+)?answer(?:\s+is)?|about|approximately|around|"
    r"[a-z]\s*=|\\[a-z]+|negative|minus|not)?[^0-9A-Za-z]*[0-9]",
    re.IGNORECASE,
)
_ABBREVIATED = re.compile(r"\b(approx|rs)\.(?=\s*\\?[$0-9])", re.IGNORECASE)


def value_of(words: str) -> Fraction:
    """The one number that `words` say. Raises `Torn` when they say none, several, or a task."""
    words = plain(words[: MAX_SPAN + 1])
    if len(words) > MAX_SPAN or not re.search("[0-9]", words):
        raise Torn("no number, or too long")
    return _one(_SPELLED.sub(_figures, words))


def _one(words: str) -> Fraction:
    if instead := _INSTEAD.search(words):  # 18 apples, not 17
        value = _one(words[: instead.start()])
        if value == _one(words[instead.end() :]):
            raise Torn("stated and denied")
        return value
    first = re.search("[0-9]", words)
    if first is None or refused(words) or _BOUND.search(words[: first.start()]):
        raise Torn("no number, or denied, hedged or a bound")
    rest = _ASIDE.sub("", words[first.end() :])
    values = set()
    for part in _PARTS.split(words[: first.end()] + rest):
        *left, part = part.split("=")
        if left_to_compute(part):
            raise Torn("left to compute")
        values.update(_numbers(part))
        for side in left:  # 17 = 18; "Day 2 = 18" and "9 * 2 = 18" hold one answer
            if _BODY.match(side.strip()) and re.fullmatch(r"[^A-Za-z]*[0-9]\s*\w*\s*", side):
                values.update(() if left_to_compute(side) else _numbers(side))
    if len(values) != 1:
        raise Torn("no number, or several")
    return values.pop()


def refused(words: str) -> bool:
    """Whether the words deny what they state, or state it with doubt."""
    return bool(_NEGATED.search(words) or _HEDGED.search(words))


def left_to_compute(words: str) -> bool:
    """Whether plain words hold an operation, or a digit or sign that is not read here."""
    return bool(_COMPUTE.search(words)) or any(
        not c.isascii() and (c.isnumeric() or unicodedata.category(c) == "Sm") for c in words
    )


def plain(words: str) -> str:
    """The same words with every accepted way of writing a number turned into the plain one."""
    kinds = ((c, unicodedata.category(c)) for c in words.translate(_CHARACTERS))
    words = "".join("$" if kind == "Sc" else c for c, kind in kinds if kind != "Cf")
    for pattern, new in _REWRITES:
        words = pattern.sub(new, words)
    return _MIXED.sub(lambda m: f"{int(m[1]) * int(m[3]) + int(m[2])}/{m[3]}", words)


def _figures(spelled: re.Match[str]) -> str:
    """`two hundred and five` in figures."""
    total = part = 0
    for word in re.findall("[a-z]+", spelled[0].lower()):
        value = _WORDS.get(word, 0)
        if value >= 1000:
            total, part = total + part * value, 0
        else:
            part = part * 100 if value == 100 else part + value
    return str(total + part)


def _numbers(words: str) -> list[Fraction]:
    values = []
    for run in _RUN.finditer(words):
        before = words[: run.start()]
        if re.search("[A-Za-z_]$", before):
            continue  # a name: x1, CO2
        body = run[0].strip(",:").rstrip("./:,")
        end = run.start() + run[0].index(body) + len(body)
        values.append(_number(body, before, words[end:]))
    return values


def _number(body: str, before: str, after: str) -> Fraction:
    match = _BODY.fullmatch(body)
    if match is None or len(body) > MAX_DIGITS or _UNKNOWN.match(after):
        raise Torn("not a number")
    if not (_LEFT.search(before) and _RIGHT.match(after)):
        raise Torn("part of something else")
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
    if len(canonical(value)) > MAX_DIGITS:
        raise Torn("out of range")
    return value * _sign(before)


def _sign(before: str) -> int:
    """-1 behind a minus sign that has nothing to subtract from; raises `Torn` where it has."""
    head = before.rstrip(" ({")
    if not head.endswith("-"):
        return 1
    left = head[:-1].rstrip()
    adjacent = head == before.rstrip("({")
    if not left or (adjacent and not (head[:-1][-1:].isalnum() or head[:-1][-1:] in ")%-")):
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
    """The number of the last statement; one that announces it, or none, leaves the last number."""
    text = _ABBREVIATED.sub(r"\1", text)
    found = statements(text)
    if not found:
        return _last_number(text)
    last = found[-1]
    rest = text[last.end :]
    if last.form == "prose" and not re.search("[0-9]", last.span):
        announced = not re.search(r"\w", last.span) or last.span.rstrip(" *").endswith(":")
        return _last_number(rest) if announced and not _NEGATED.search(last.before) else None
    heading = last.form == "hash" and not _LEAD.match(plain(last.span[:MAX_SPAN]))
    if heading and re.search("[0-9]", rest) and not _SPELLED.search(last.span):
        return _last_number(rest)
    if _NEGATED.search(last.before) or _BOUND.search(" ".join(last.before.split()[-2:])):
        return None
    try:
        return value_of(last.span)
    except Torn:
        return None


def _last_number(text: str) -> Fraction | None:
    """The last number of `text`, unless it is denied, hedged, in a task or to be computed.

    A text that ends in a question answers none.
    """
    lines = [s for s in re.split(r"\n|(?<=[.!?])\s", text) if re.search("[0-9]", s)]
    if not lines or text.rstrip().endswith("?"):
        return None
    line = re.sub(r"^\s*[-*•]\s+", "", lines[-1])
    if len(line) > MAX_SPAN:
        line = line[-MAX_SPAN:].partition(" ")[2]
    words = plain(line).rpartition("=")[2]
    runs = list(_RUN.finditer(words))
    if not runs or _HEDGE.search(_SPELLED.sub(_figures, words)) or left_to_compute(words):
        return None
    before, after = words[: runs[-1].start()], words[runs[-1].end() :]
    unfinished = re.search(r"[0-9)]\s*[-+*/×÷]\s*$", before)
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
