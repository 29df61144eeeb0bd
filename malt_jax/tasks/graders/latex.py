r"""Grading mathematical answers in LaTeX.

The last statement of an answer counts (see `statements`); without one, the only formula of the
last line. It is compared with the reference in this order, and the first that applies decides:

1. the same after tidying (`\dfrac`, `\left`, blanks, units in `\text{}`): equal, unless the units
   or the names of the values differ;
2. both numbers: equal if the same number, exactly, the percent sign being a unit (as in
   `numerals`). What the question itself says (`513^2-487^2`), and what only computes with its
   numbers (`17*23`), is no answer to a number;
3. the reference a word (`\text{Evelyn}`): equal if the same word;
4. otherwise both are read whole and compared exactly, see `latex_worker`. That is done in a process
   that is killed at the time limit, which counts as unequal. In a chain of equations every side
   must be equal, but for names of the value.
"""

from __future__ import annotations

import atexit
import functools
import queue
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from fractions import Fraction

from malt_jax.tasks.base import Grade, Question
from malt_jax.tasks.graders import number, numerals
from malt_jax.tasks.graders.comparer import Comparer
from malt_jax.tasks.graders.exact import tidy as tidy_words
from malt_jax.tasks.graders.languages import fold
from malt_jax.tasks.graders.number import asks_for
from malt_jax.tasks.graders.patterns import Patterns
from malt_jax.tasks.graders.statements import statements, unfinished

MAX_LENGTH = 1000  # characters; a longer answer is no answer

_RE = Patterns("latex")
_UNITS = {
    unit: name
    for name, units in _RE.table["units"].items()
    for unit in [name, f"{name}s", *units.split()]
}
_SIGNS = str.maketrans(_RE.table["signs"])
_REWRITING, _TIDYING, _SPELLING = map(_RE.rules, ("rewriting", "tidying", "spelling"))


@functools.lru_cache(4096)
def tidy(latex: str) -> str:
    """LaTeX with spelling differences removed that have no mathematical meaning."""
    latex = latex.strip().translate(_SIGNS)
    for pattern, new in _REWRITING:
        latex = pattern.sub(new, latex)
    latex = latex.strip().rstrip(".\\ ")
    # "x<1 and x>2" is no list, but what both have in common.
    both = _RE.relation.search(latex)
    latex = _RE.joined.sub(lambda m: m[0] if both and "and" in m[0] else ", ", latex)
    # Units are removed first, because the rewriting below takes the `\text{}` around them away.
    unit = lambda m: "" if _is_unit(m[m.lastindex], bare=not m[1]) else m[0]  # noqa: E731
    latex = _RE.unit.sub(unit, latex)
    for pattern, new in _TIDYING:
        latex = pattern.sub(new, latex)
    latex = " ".join(latex.split())
    # "1 2" keeps its blank, and outside of brackets "1, 234" does
    listed = r"" if re.match(r"\\?[(\[{]", latex) else r"(?!(?<=,\s)[0-9]{3}(?![0-9]))"
    blank = rf"(\\[A-Za-z]+\s(?=[A-Za-z]))|(?<![0-9])\s{listed}|\s(?![0-9])"
    latex = re.sub(blank, lambda m: m[1] or "", latex)
    for pattern, new in _SPELLING:
        latex = pattern.sub(new, latex)
    # Degrees are dropped like a unit, but inside trigonometry they change the value.
    return latex if _RE.trigonometry.search(latex) else re.sub(r"\^\{?\\circ\}?", "", latex)


def plain_number(latex: str) -> Fraction | None:
    """The value of LaTeX that is one number and nothing else; a unit may follow."""
    latex = re.sub(r"^\\\{([^,]*)\\\}$", r"\1", _RE.name.sub("", tidy(latex), count=1))
    if match := _RE.recurring.fullmatch(latex):
        sign, whole, start, cycle = match.groups()
        # A cycle of n digits is worth itself over n nines, moved right by the digits before it.
        value = Fraction(int(cycle), 10 ** len(start) * (10 ** len(cycle) - 1))
        return (value + Fraction(f"{whole or 0}.{start or 0}")) * (-1 if sign else 1)
    # A power of ten alone is written as 1en, which the reader of numbers knows.
    words = numerals.plain(re.sub(r"^(-?)10\^\{?(-?[0-9]+)\}?$", r"\g<1>1e\2", latex))
    if not _RE.plain.fullmatch(words) or ("," in words and words.strip()[0] in "({"):
        return None
    try:
        return number.value_of(words)
    except numerals.Unreadable:
        return None


def _is_unit(words: str, bare: bool) -> bool:
    """Whether the words leave the number before them as it is; bare letters may be a product."""
    if bare and not all(len(word) > 3 or word in _UNITS for word in words.split()):
        return False
    attached = len(words.strip()) == 1  # 1m is a length, 1x a product
    # A unit is harmless if the number 1 in front of it still reads as 1.
    return not re.search(r"\band\b", words) and _one(f"1{'' if attached else ' '}{words.strip()}")


def _one(words: str) -> bool:
    try:
        return number.value_of(words) == 1
    except numerals.Unreadable:
        return False


def final_formula(text: str, asked: str = "") -> str | None:
    """The LaTeX of the last statement; without one, the only formula of the last line.

    asked: the question's text, whose terms a value may be the value of.
    """
    # Display formulas become inline ones on one line, so that one pattern finds both.
    text = _RE.display.sub(lambda m: f"${' '.join((m[1] or m[2]).split())}$", fold(text))
    found = statements(text)
    if found and found[-1].form == "box":
        words = found[-1].span
    elif found:
        last = found[-1]
        words = last.span
        # The statement itself is blank, so the answer is on the next line.
        if not words.strip(" *:.$"):
            words = text[last.end :].strip().lstrip("$\n ").partition("\n")[0]
        formulas = _formulas(words)
        # "$1$ and $2$" is a list of two, but "$x=1$ and $y=2$" is not.
        names = {name for formula in formulas for _, name in _RE.name.findall(tidy(formula))}
        listed = len(formulas) > 1 and _RE.between.fullmatch(_RE.formula.sub("", words))
        if listed and len(names) < 2:
            words, formulas = ", ".join(formulas), []
        if number.refused(last.before + " " + words):
            return None
        # One formula among words counts if the same words around a 1 read as 1, and around a box
        # state the box: then nothing around it changes its meaning.
        if len(formulas) == 1:
            words = _as_box(words) if _one(_RE.formula.sub(" 1 ", words)) else ""
    else:
        line = text.rstrip().rpartition("\n")[2]
        alone = len(line) <= MAX_LENGTH and plain_number(line) is not None
        formulas = _formulas(line)
        words = line if alone and not formulas else ""
        if len(formulas) == 1 and not unfinished(line, line) and not number.refused(line):
            # The words of the same clause must leave a 1 as it is: "half of" and "4 times" do not.
            clause = re.split(r"[,;:.]\s", line.partition(formulas[0])[0].rstrip("$\\( "))[-1]
            clause = clause.rpartition("=")[2]
            words = _as_box(line) if number.final_number(f"{clause} 1") == 1 else ""
        *left, right = words.split("=")
        # "2n = 12" stays whole, because it says nothing of n.
        words = words if any(map(_letters, left)) and not _says(left, asked) else right
    words = re.sub(r"^\*\*|\*\*$", "", words.strip())
    words = re.sub(r"^[$ ]+|(?<!\\)[$ ]+$", "", words)
    # A dollar sign that is left belongs to a second formula.
    several = re.search(r"(?<!\\)\$", words)
    return words if words and len(words) <= MAX_LENGTH and not several else None


def _as_box(words: str) -> str:
    """The only formula of the words, empty if they would deny or change a box in its place."""
    boxed = _RE.formula.sub(lambda m: rf"\boxed{{{''.join(m.groups(''))}}}", words)
    return found[-1].span if (found := statements(boxed)) else ""


def _formulas(text: str) -> list[str]:
    return ["".join(groups) for groups in _RE.formula.findall(text)]


def decided(gold: str, answer: str) -> bool | None:
    """Steps 1 to 3 of the comparison with one side of an equation; None when they do not decide."""
    given, said = _unnamed(tidy(gold)), _unnamed(tidy(answer))
    units = _units(gold), _units(answer)
    names = _RE.name.findall(tidy(gold)), _RE.name.findall(tidy(answer))
    if not said or (all(units) and units[0] != units[1]) or (all(names) and names[0] != names[1]):
        return False
    if given == said:
        return True
    values = plain_number(gold), plain_number(answer)
    if None not in values:
        return values[0] == values[1]
    several = _RE.alternatives.split(answer)  # the same number, written in two ways
    if values[0] is not None and len(several) > 1:
        return {plain_number(one) for one in several} == {values[0]}
    if word := _RE.words.fullmatch(gold.strip()):
        if labelled := _RE.labelled.fullmatch(answer.strip()):
            answer = labelled[1]
        stated = _RE.words.fullmatch(answer.strip())
        if stated or word[1]:
            words = (stated[1] or stated[2]) if stated else answer
            return tidy_words(words).strip("()") == tidy_words(word[1] or word[2]).strip("()")
    return None


def sides(gold: str, answer: str, asked: str = "") -> list[str]:
    """What of the answer must equal the reference; nothing if a part of it can't be meant so.

    In `AB = 9 + 9 = 18` it is `9 + 9` and `18`; `2x = 18` says nothing of x, unless the question's
    text, `asked`, holds `2x`.
    """
    given, said = tidy(gold), tidy(answer)
    if number.refused(said) and not number.refused(given):
        return []
    if set(_RE.text.findall(said)) - set(_RE.text.findall(given)) and not _RE.words.fullmatch(
        gold.strip()
    ):
        return []
    listed = re.search(r",(?![0-9]{3}(?![0-9]))", said)
    equation = _RE.name.match(given) and said.count("=") == 1
    if "=" not in _unnamed(said) or "=" in _unnamed(given) or listed or equation:
        return [answer]
    # A side with variables that the reference lacks is a name for the value and says nothing.
    both = answer.split("=")
    values = [side for side in both if _letters(tidy(side)) <= _letters(given)]
    return values if _says([side for side in both if side not in values], asked) else []


def _says(names: list[str], asked: str) -> bool:
    """Whether an equation with these sides and a value states that value.

    It does if each of them is a name or in the question; or if the chain begins or ends with a
    name, as in `A = lw = 18`: what is between them says how the value was found.
    """
    formulas = {_unspaced(formula).rstrip(".,;:?") for formula in _formulas(asked)}
    called = [
        bool(
            _RE.called.fullmatch(tidy(name)) or _unspaced(name) in formulas or asks_for(asked, name)
        )
        for name in names
    ]
    return all(called) or called[0] or called[-1]


def _unnamed(latex: str) -> str:
    """Without the name of its values: `x=1,x=2` is `1,2`."""
    names = {name for _, name in _RE.name.findall(latex)}
    return _RE.name.sub(r"\1", latex) if len(names) == 1 else re.sub("=[A-Za-z]$", "", latex)


def _both_equations(gold: str, answer: str) -> tuple[str, str]:
    """Both as they are, or without the names of their values where only one has some."""
    if "=" in gold and "=" in answer:
        return gold, answer
    return _unnamed(gold), _unnamed(answer)


def _units(latex: str) -> set[str]:
    """The units of measure that the LaTeX names."""
    return {_UNITS[word] for word in re.findall(r"\\?[A-Za-z]+", latex) if word in _UNITS}


def _letters(latex: str) -> set[str]:
    """The variables; upper and lower case differ."""
    latex = _RE.no_letters.sub("", latex)
    return set(_RE.greek.findall(latex)) | set(re.findall("[A-Za-z]", _RE.command.sub("", latex)))


@dataclass(frozen=True)
class LatexGrader:
    """Mathematical equality with the reference, decided in `seconds` of processor time per pair.

    workers: processes that compare at the same time. They start when they are first needed, and
    live until `close` or the program's end.
    """

    seconds: float = 3.0
    workers: int = 2
    # One place per worker; None stands for a worker that is not running.
    _idle: queue.SimpleQueue[Comparer | None] = field(
        default_factory=queue.SimpleQueue, repr=False, compare=False
    )

    def __post_init__(self):
        for _ in range(self.workers):
            self._idle.put(None)
        atexit.register(self.close)

    def close(self) -> None:
        """Ends the workers; a later `grade` starts new ones."""
        for _ in range(self.workers):
            if worker := self._idle.get():
                worker.stop()
            self._idle.put(None)

    def extract(self, text: str) -> str | None:
        formula = final_formula(text)
        return None if formula is None else _canonical(formula)

    def grade(self, texts: Sequence[str], questions: Sequence[Question]) -> list[Grade]:
        pairs: list[tuple[str, str, str] | None] = []
        for text, question in zip(texts, questions, strict=True):
            formula = final_formula(text, question.text)
            stated = formula is not None and not _copied(formula, question)
            pairs.append((question.answer, formula, question.text) if formula and stated else None)
        # Many samples give the same answer, so equal pairs are compared once.
        asked = list(dict.fromkeys(pair for pair in pairs if pair))
        # The threads mostly wait, because the comparisons run in the worker processes.
        with ThreadPoolExecutor(self.workers) as pool:
            verdicts = dict(zip(asked, pool.map(self._equal, asked), strict=True))
        return [
            Grade(_canonical(pair[1]), verdicts[pair]) if pair else Grade(None, False)
            for pair in pairs
        ]

    def check(self, question: Question) -> str | None:
        """Why the reference answer can't be graded; None when it can."""
        return None if tidy(question.answer) else "the answer holds no formula"

    def _equal(self, pair: tuple[str, str, str]) -> bool:
        gold, answer, asked = pair
        parts = sides(gold, answer, asked)
        verdicts = [decided(gold, part) for part in parts]
        # One side that is surely wrong decides before any worker is asked.
        if not parts or False in verdicts:
            return False
        undecided = [p for p, verdict in zip(parts, verdicts, strict=True) if verdict is None]
        return all(self._compared(*_both_equations(tidy(gold), tidy(p))) for p in undecided)

    def _compared(self, gold: str, answer: str) -> bool:
        """Step 4, in the next idle worker."""
        worker = self._idle.get()
        try:
            # The kernel ended a worker whose comparison took too long; the next one starts here.
            if worker is None or not worker.alive:
                if worker:
                    worker.stop()
                worker = None  # in case that the next one does not start
                worker = Comparer()
            return worker.equal(gold, answer, self.seconds)
        finally:
            self._idle.put(worker)


def _copied(formula: str, question: Question) -> bool:
    """Whether the formula is what the question asks to compute, not what comes out of it.

    In an equation that holds for each side but the names.
    """
    # A word of the question may be the answer to it: which of three, or even or odd.
    if plain_number(formula) is not None or _RE.words.fullmatch(formula):
        return False
    parts = [formula] if "=" in question.answer else formula.split("=")
    parts = [part for part in parts if not _RE.called.fullmatch(tidy(part))] or [formula]
    return all(_repeats(part, question) for part in parts)


def _repeats(formula: str, question: Question) -> bool:
    asked, copied, gold = map(_unspaced, (question.text, formula, question.answer))
    if plain_number(formula) is not None or copied in (gold, *gold.split("=")):
        return False
    if copied in asked:
        return True
    # Instead of a number, an operation with numbers of the question is left to compute: 0.15 * 40.
    # A factorial or binomial says more than the question did.
    lettered = _letters(tidy(formula)) or _RE.counting.search(formula)
    if plain_number(question.answer) is None or lettered:
        return False
    used = _figures(tidy(formula)) - {0, 1}
    given = _figures(tidy(question.text))
    return bool(used and _RE.operation.search(tidy(formula))) and used <= given | {
        value / 100 for value in given
    }


def _figures(latex: str) -> set[Fraction]:
    return {Fraction(figure.replace(",", "")) for figure in _RE.figure.findall(latex)}


def _unspaced(latex: str) -> str:
    latex = re.sub(r"[\s{}()]|\\(?:left|right|displaystyle)(?![a-zA-Z])|\\[,!;: ]", "", tidy(latex))
    # Signs that the brackets kept apart.
    for signs, sign in ("+-", "-"), ("-+", "-"), ("--", "+"), ("++", "+"):
        latex = latex.replace(signs, sign)
    return latex.removeprefix("+")


def _canonical(formula: str) -> str:
    value = plain_number(formula)
    return numerals.canonical(value) if value is not None else tidy(formula) or formula
