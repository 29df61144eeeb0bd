"""The languages in which final answers are read.

They are English (whose rules are in `statements`), the ten others of MGSM, Korean, Arabic and
Hindi. `fold` turns the digits and the punctuation of every script into ASCII, so that the graders
need one set of rules. `LANGUAGES` says how each language announces and denies an answer, `SCALES`
what its words for thousands and millions are worth (`patterns/languages.toml`), and `unread` finds
questions in a language that is not covered.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

from malt_jax.tasks.graders.patterns import MAX_SPAN, Patterns

_TABLES = Patterns("languages")
_LEAD = Patterns("statements").lead.pattern
_STOPS = _TABLES.table["stops"]
_SIGNS = str.maketrans(
    {chr(code): chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}  # full-width forms
    | _TABLES.table["signs"]
)
# Scripts without blanks between words, or whose words take endings: a number may touch them.
ATTACHED = r"\u0600-\u06ff\u0900-\u0e7f\u1100-\u11ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"


def fold(text: str) -> str:
    """Text with the digits, punctuation and full-width letters of every script as in ASCII.

    A run of digits from two scripts stays as it is, so that it is not read as a number.
    """
    # "x != 18", but not the factorial of "4!=24".
    text = re.sub(r"(?<![\w)}\]])!=|=/=", "≠", text)
    if text.isascii():
        return text
    # The patterns have the same form (see `_compiled`), so accents match however they were typed.
    text = unicodedata.normalize("NFC", text)
    text = re.sub(r"(?<=\d)[，،](?=\d)", ",", text)  # it separates groups of digits
    text = re.sub(r"(?<=\d)：(?=\d)", ":", text)  # and here hours and minutes
    text = re.sub(r"(?<=\d)（", " (", text)
    # Elsewhere the ASCII sign needs a blank after it: that is how a sentence is seen to end.
    text = re.sub(f"[{''.join(_STOPS)}]", lambda m: f"{_STOPS[m[0]]} ", text)
    # A danda that was typed as a vertical line, behind a letter or digit of Hindi or Bengali.
    text = re.sub(r"(?<=[\u0900-\u09ff])\s?\|(?!\|)", ". ", text)
    return re.sub(r"\d+", _ascii_digits, text.translate(_SIGNS))


def _ascii_digits(run: re.Match[str]) -> str:
    # A digit's code less its value is the same for all ten digits of one script.
    scripts = {ord(digit) - int(digit) for digit in run[0]}
    return "".join(str(int(digit)) for digit in run[0]) if len(scripts) == 1 else run[0]


@dataclass(frozen=True)
class Language:
    """How one language says "the answer is", as regular expressions.

    answer: nouns that announce an answer.
    link:   what connects the noun with the answer; a colon or an equals sign always does.
    denial: words that deny or doubt the answer, or make it a bound or a part of something.
    direct: whether the answer may follow the noun without a link.
    spaced: whether blanks separate words, so that only whole words match.
    decimal_comma: whether decimals are written with a comma and thousands with a point.
    """

    answer: str
    link: str
    denial: str
    direct: bool = True
    spaced: bool = True
    decimal_comma: bool = False

    @cached_property
    def opener(self) -> re.Pattern[str]:
        """Matches up to the answer, `line`. The words before it are `between` or `near`."""
        # Where no blanks separate words, there are no borders of words to look for.
        start, end = (r"(?<!\w)", r"(?![\w'’])") if self.spaced else ("", "")
        # A capital letter alone or in brackets is the label of a choice and ends the words between.
        label = r"[(\[]?(?-i:[A-Z])[)\]]?(?!\w)"
        between = rf"(?P<between>(?:(?!{label})[^.:=\n\d]){{0,60}}?)"
        near = rf"(?P<near>[^.:=\n\d]{{0,9}}?)(?=[ *_\"(\[$]*(?:-?\d|\\|(?<!\w){label}))"
        return _compiled(
            rf"{start}(?:{self.answer})(?:{between}(?:[:=]|{start}(?:{self.link}){end})"
            rf"|{near if self.direct else '(?P<near>(?!))'})"
            rf"{_LEAD}(?=(?P<line>[^\n]{{0,{MAX_SPAN + 1}}}))"
        )

    @cached_property
    def denies(self) -> re.Pattern[str]:
        start, end = (r"(?<![^\s(*])", r"(?![^\s.,;:!?)*])") if self.spaced else ("", "")
        return _compiled(rf"{start}(?:{self.denial}){end}")


def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(unicodedata.normalize("NFC", pattern), re.IGNORECASE)


LANGUAGES = {name: Language(**entry) for name, entry in _TABLES.table["languages"].items()}
COPULA, REASON = _TABLES.copula, _TABLES.reason
TAKEN_BACK, FACTS = _TABLES.source("taken_back"), _TABLES.source("facts")
_LATIN = ("German", "Spanish", "French", "Swahili")


def candidates(text: str) -> list[Language]:
    """The languages that a text may be in, judged by its letters; English is never listed."""
    return [LANGUAGES[name] for name in (_LATIN if text.isascii() else LANGUAGES)]


def denied(words: str) -> bool:
    """Whether a sentence denies or doubts something, in any of the languages but English."""
    if _TABLES.latin_denial.search(words):
        return True
    others = (language for name, language in LANGUAGES.items() if name not in _LATIN)
    return not words.isascii() and any(language.denies.search(words) for language in others)


def writes_decimal_comma(text: str) -> bool:
    """Whether a text without a stated answer seems to be in a language that writes 3.5 as 3,5."""
    words = re.findall(r"[^\W\d_]+", text.casefold())
    comma = sum(bool(_TABLES.comma_words.fullmatch(word)) for word in words)
    point = sum(bool(_TABLES.point_words.fullmatch(word)) for word in words)
    return comma > point or bool(re.search("[\u0400-\u04ff]", text))


# Each word for a power of ten is a group of its own, so that the group's number finds the factor.
_SCALES = _TABLES.table["scales"]
SCALE = _compiled(rf"\s*(?:{'|'.join(f'({word})' for word in _SCALES)})")
SCALES = list(_SCALES.values())
"""The factors that the groups of `SCALE` stand for."""


def unread(texts: Iterable[str]) -> bool:
    """Whether texts seem to be in a language that is not covered.

    Judged from the script of the first texts, and, where several languages share it, from the
    share of frequent words. Fewer than 50 words are too few to tell.
    """
    words = re.findall(r"[^\W\d_]+", " ".join(islice(texts, 200))[:100_000].casefold())
    if len(words) < 50:
        return False
    # The first word of a letter's Unicode name is its script, such as LATIN.
    scripts = Counter(unicodedata.name(word[0], "?").split()[0] for word in words)
    (script, _), *_ = scripts.most_common(1)
    frequent = set(_TABLES.table["frequent"].split("|"))
    return script not in _TABLES.table["own_scripts"] and sum(
        w in frequent for w in words
    ) < 0.03 * len(words)
