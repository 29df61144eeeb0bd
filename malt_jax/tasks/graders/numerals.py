r"""Reading numerals: the ways in which texts write numbers, as exact fractions.

- groups of thousands `1,234` `1{,}234` `1'234` `1_234` `1 234` `12,34,567` `1.234.567` (a malformed
  one makes the number unreadable);
- decimals, scientific notation (`1.5e3`, `1.5 \times 10^3`), fractions (`3/4`, `\frac{3}{4}`, `½`,
  mixed `1 1/2`, `1 and a half`), negatives (`-5`, `−5`, `-$5`, `negative 5`), multipliers
  (`2 million`, `5k`);
- currency signs and units are dropped, and **the percent sign is a unit**: `18%` is 18 and not
  0.18, as in the published answers; 50 cents is 50 and 5 dozen is 5.

Where a language writes 3.5 as `3,5`, both `1.234` and `1,234` are ambiguous and therefore no
number, while `1.234,50` and `3,5` are read.

Only what is known to be harmless may surround a number: blanks, punctuation, a unit. A digit of
another script, a letter O, a dash or an exponent there changes the number, so it is not read.
"""

from __future__ import annotations

import math
import re
import unicodedata
from fractions import Fraction

from malt_jax.tasks.graders.languages import ATTACHED, SCALE, SCALES
from malt_jax.tasks.graders.patterns import Patterns

MAX_DIGITS = 60
MAX_EXPONENT = 300


class Unreadable(ValueError):
    """The words do not state exactly one number."""


_RE = Patterns("numerals", attached=ATTACHED, scale=SCALE.pattern.removeprefix("(?i)"))
_CHARACTERS = str.maketrans(_RE.table["characters"])
_SURROUNDINGS, _REWRITES = _RE.rules("surroundings"), _RE.rules("rewrites")
_MULTIPLIERS = {name: Fraction(value) for name, value in _RE.table["multipliers"].items()}
_SHORT = {name: Fraction(value) for name, value in _RE.table["short"].items()}
RUN, SPELLED = _RE.run, _RE.spelled
_ONES, _TENS = ["zero", "one", *_RE.table["units"]], _RE.table["tens"]
_WORDS = (
    {word: i for i, word in enumerate(_ONES)}
    | {word: 10 * i for i, word in enumerate(_TENS, 2)}
    | {"hundred": 100, "thousand": 10**3, "million": 10**6}
)


def plain(words: str) -> str:
    """Folded words with every accepted way of writing a number turned into the plain one."""
    # Every currency sign (category Sc) becomes a dollar sign, which is dropped below; invisible
    # signs (Cf) go.
    kinds = ((c, unicodedata.category(c)) for c in words.translate(_CHARACTERS))
    words = "".join("$" if kind == "Sc" else c for c, kind in kinds if kind != "Cf")
    for pattern, new in _SURROUNDINGS:
        words = pattern.sub(new, words)
    words = _RE.raised.sub(lambda m: f"^{{{unicodedata.normalize('NFKC', m[0])}}}", words)
    words = _RE.blank_groups.sub(lambda groups: re.sub(r"\s", "", groups[0]), words)
    for pattern, new in _REWRITES:
        words = pattern.sub(new, words)
    words = _joined_scales(words)
    # Mixed numbers come last, when every fraction is written as 3/4.
    return _RE.mixed.sub(lambda m: f"{int(m[1]) * int(m[3]) + int(m[2])}/{m[3]}", words)


def _joined_scales(words: str) -> str:
    """`1만 8천` and `3亿5000万` in figures: groups whose words for powers of ten become smaller."""
    done, written = 0, ""
    for run in _RE.group.finditer(words):
        scale = SCALE.match(words, run.end())
        if run.start() < done or not (scale and scale.lastindex):
            continue
        total, least, end, groups = 0, math.inf, run.start(), 0
        while group := _RE.group.match(words, end):
            factor, stop = 1, group.end()
            while (scale := SCALE.match(words, stop)) and scale.lastindex:
                factor *= SCALES[scale.lastindex - 1]
                stop = scale.end()
            value = int(group[0]) * factor
            if value >= least:
                break
            total, least, end, groups = total + value, factor, stop, groups + 1
        if groups > 1:
            start = run.start() + run[0].startswith(" ")  # the blank before it stays
            written += f"{words[done:start]}{total}"
            done = end
    return written + words[done:]


def figures(spelled: re.Match[str]) -> str:
    """`two hundred and five` in figures."""
    # `part` is what precedes the next word from "thousand" on, which multiplies and closes it.
    total = part = 0
    for word in re.findall("[a-z]+", spelled[0].lower()):
        value = _WORDS.get(word, 0)
        if value >= 1000:
            total, part = total + part * value, 0
        else:
            part = part * 100 if value == 100 else part + value
    sign = "-" * bool(re.match("(?i)negative|minus", spelled[0]))
    if spelled[0].lower().endswith("half"):
        return f"{sign}{2 * (total + part) + 1}/2"
    return f"{sign}{total + part}"


def left_to_compute(words: str) -> bool:
    """Whether plain words hold an operation, or a digit or sign that is not read here."""
    strange = (
        not c.isascii() and (c.isnumeric() or unicodedata.category(c) == "Sm")
        for c in words
        if not "\u3400" <= c <= "\u9fff"  # 一 (one) is part of many other words
    )
    return bool(_RE.compute.search(words)) or any(strange)


def is_ordinal(words: str, run: re.Match[str]) -> bool:
    """Whether a run of digits is a place, such as 18th; 1/8th is a fraction."""
    return bool(run[0].isdecimal() and _RE.ordinal.match(words, run.end()))


def numbers(words: str, decimal_comma: bool = False) -> list[Fraction]:
    """All numbers in plain words. Raises `Unreadable` if one of them cannot be read whole."""
    values = []
    for run in RUN.finditer(words):
        before = words[: run.start()]
        if re.search("[A-Za-z_]$", before) or is_ordinal(words, run):
            continue  # a name: x1, CO2
        # Signs at the ends of the run belong to the sentence.
        body = run[0].strip(",:").rstrip("./:,")
        end = run.start() + run[0].index(body) + len(body)
        values.append(_number(body, before, words[end:], decimal_comma))
    return values


def _number(body: str, before: str, after: str, decimal_comma: bool) -> Fraction:
    # 1. The run must be one numeral whose neighbours do not change it.
    match = _RE.body.fullmatch(body)
    if match is None or len(body) > MAX_DIGITS or _RE.unknown.match(after):
        raise Unreadable("not a number")
    if not (_RE.left.search(before) and _RE.right.match(after)):
        raise Unreadable("part of something else")
    if before[-1:].isnumeric() or _RE.beside.search(before):
        raise Unreadable("two numbers side by side")
    # 2. Its value. The exponent is checked before the power is computed.
    value = _real(match["a"], decimal_comma)
    if match["e"]:
        if abs(int(match["e"])) > MAX_EXPONENT:
            raise Unreadable("out of range")
        value *= Fraction(10) ** int(match["e"])
    if match["b"]:
        divisor = _real(match["b"], decimal_comma)
        if divisor == 0:
            raise Unreadable("division by zero")
        value /= divisor
    # 3. Multipliers, which may follow each other: "2 hundred thousand".
    while multiplier := _multiplier(after, decimal_comma):
        factor, length = multiplier
        value *= factor
        after = after[length:]
    if after[:1].isnumeric() and not re.match("千[克米瓦卡焦伏帕赫]|百分", after):  # kg, %
        raise Unreadable("a digit of another script")
    if len(canonical(value)) > MAX_DIGITS:
        raise Unreadable("out of range")
    return value * _sign(before)


def _real(text: str, decimal_comma: bool) -> Fraction:
    """The value of digits with groups and a decimal part. Ambiguous separators are refused."""
    if decimal_comma and _RE.ambiguous.fullmatch(text):
        raise Unreadable("thousands or decimals")
    if _RE.point_groups.fullmatch(text):
        text = text.replace(".", "").replace(",", ".")
    elif decimal_comma and _RE.decimal_comma.fullmatch(text):
        text = text.replace(",", ".")
    elif not _RE.comma_groups.fullmatch(text):
        raise Unreadable("not a number")
    return Fraction(text.replace(",", ""))


def _multiplier(after: str, decimal_comma: bool) -> tuple[Fraction, int] | None:
    """The factor that the next word stands for, and that word's length."""
    if decimal_comma and (
        thousand := re.match(r"\s*mil\b", after)
    ):  # Spanish; a million in English
        return Fraction(1000), thousand.end()
    if match := _RE.word_multiplier.match(after):
        return Fraction((_MULTIPLIERS | _SHORT)[match[1] or match[2]]), match.end()
    if (match := SCALE.match(after)) and match.lastindex:
        return Fraction(SCALES[match.lastindex - 1]), match.end()
    return None


def _sign(before: str) -> int:
    """-1 after a minus sign with nothing to subtract from; raises `Unreadable` after another."""
    # A bracket between sign and number changes nothing: `-(5)`.
    head = before.rstrip(" ({")
    if not head.endswith("-"):
        return 1
    left = head[:-1].rstrip()
    if re.search(r"-\s*[({]+$", left):
        return -_sign(left)  # -(-18)
    # Whether the sign touches the number, brackets aside: "9 - 5" is a difference.
    adjacent = head == before.rstrip("({")
    alone = re.fullmatch(f"[^0-9]*[{ATTACHED}]", left)  # "答案是-18" has nothing to subtract from
    touched = head[:-1][-1:]
    if not left or alone or (adjacent and not (touched.isalnum() or touched in tuple(")%-"))):
        return -1
    raise Unreadable("a difference")


def canonical(value: Fraction) -> str:
    """`18`, `-2.5` or `1/3`: one string for one value."""
    numerator, denominator = value.numerator, value.denominator
    if denominator == 1:
        return str(numerator)
    # The shortest decimal where there is a finite one, else the fraction.
    for places in range(1, 13):
        if 10**places % denominator == 0:
            digits = str(abs(numerator) * 10**places // denominator).rjust(places + 1, "0")
            return f"{'-' * (numerator < 0)}{digits[:-places]}.{digits[-places:]}"
    return f"{numerator}/{denominator}"
