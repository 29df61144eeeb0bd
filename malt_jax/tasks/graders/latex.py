r"""Grading mathematical answers in LaTeX.

The last statement of an answer counts (see `statements`); without one, the only formula of the
last line. It is compared with the reference in this order, and the first that applies decides:

1. the same after tidying (`\dfrac`, `\left`, blanks, units in `\text{}`), the unit not another;
2. both numbers: the same number, exactly, the percent sign being a unit (as in `number`); what
   the question says itself (`513^2-487^2`) is no answer where the reference is a number;
3. the reference a word (`\text{Evelyn}`): the same word;
4. not the same kind of thing: another name, letter, base or bracket, another count of values, a
   relation or a command the reference does not hold: unequal;
5. math-verify, in a process that is killed at the time limit, which counts as unequal. Every side
   of a chain of equations must be equal.
"""

from __future__ import annotations

import atexit
import json
import queue
import re
import select
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

from malt_jax.errors import UserError
from malt_jax.tasks.base import Grade, Question
from malt_jax.tasks.graders import number
from malt_jax.tasks.graders.exact import tidy as tidy_words
from malt_jax.tasks.graders.statements import statements

MAX_LENGTH = 1000  # characters; a longer answer is no answer

_DISPLAY = re.compile(r"\$\$([^$]+)\$\$|\\\[((?:(?!\\[\[\]]).)+)\\\]", re.DOTALL)
_FORMULA = re.compile(r"(?<!\\)\$((?:[^$\\]|\\.)+)\$|\\\(((?:(?!\\[()]).)+)\\\)", re.DOTALL)
_FONT = r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox)\s*"
_TEXT = re.compile(rf"{_FONT}\{{([^{{}}]*)\}}")
_PLAIN = re.compile(r"\s*[({]?\s*[-+]?\s*[0-9.][0-9.,/]*(?:e[-+]?[0-9]+)?\s*[)}]?\s*")
_RECURRING = re.compile(r"(-?)([0-9]*)\.([0-9]*)\\overline\{?([0-9]+)\}?")
_WORDS = re.compile(rf"{_FONT}\{{([^{{}}]*)\}}\.?|([A-Za-z][A-Za-z ]+)\.?")
_JOINED = re.compile(
    rf",?\s*{_FONT}\{{\s*(?:or|and)\s*\}}|\s(?:or|and)\s|,?\s*\\q?quad(?![a-zA-Z])"
)
_UNIT = re.compile(
    rf"(?<=[0-9A-Za-z}}%)])(?:\s|~|\\[,;:! ])*"
    rf"(?:{_FONT}\{{\s*([A-Za-z][^{{}}\\]*)\}}(?:\^\{{?[23]\}}?)?|"
    r"(?<=[0-9])\s([a-z]{2,}(?:\s[a-z]{2,})*))(?=\s*(?:$|[,;=]))"
)
_UNITS = {
    unit: name
    for name, units in {
        "millimeter": "mm", "centimeter": "cm", "meter": "m", "kilometer": "km",
        "inch": "in inches",
        "foot": "ft feet", "yard": "yd", "mile": "mi", "gram": "g", "kilogram": "kg", "ounce": "oz",
        "pound": "lb lbs", "liter": "L", "milliliter": "ml mL", "second": "s sec", "minute": "min",
        "hour": "h hr hrs", "day": "", "week": "", "month": "", "year": "yr", "cent": "",
        "dollar": "", "degree": r"\circ", "radian": "rad",
    }.items()
    for unit in [name, f"{name}s", *units.split()]
}  # fmt: skip
_RELATION = re.compile(r"\\(?:neq?|not|leq?|geq?|lt|gt)(?![a-zA-Z])|[<>≠≤≥]")
_ELEMENT = re.compile(r"\\in(?![a-zA-Z])")
_BETWEEN = re.compile(r"(.+?)(<|\\leq?)\s*[a-zA-Z]\s*(<|\\leq?)(?![a-z])(.+)")
_BASE = re.compile(r"(?<=[0-9A-F])_")
_STRAY = re.compile(r"[^\W\d_a-zA-Zα-ωΑ-Ω]|[²³¹⁰⁴-⁹₀-₉]|(?![0-9])\d")  # 10⁶, ١8
_NAME = re.compile(r"(^|,)([A-Za-z](?:\([a-z]\))?)=")
_COMMAND = re.compile(r"\\([A-Za-z]+)")
_GREEK = re.compile(r"\\(?:alpha|beta|gamma|delta|theta|lambda|mu|phi|omega)(?![a-z])")
_TRIGONOMETRY = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![a-z])")
_IRRATIONAL = re.compile(r"\\(?:sqrt|pi)(?![a-z])")
_COMMANDS = set(re.findall("[A-Za-z]+", r"""
    frac dfrac tfrac cfrac sqrt pi cdot times div pm mp infty circ degree binom dbinom cup cap
    setminus in mathbb emptyset varnothing sin cos tan cot sec csc arcsin arccos arctan log ln exp
    le leq ge geq lt gt ne neq left right begin end pmatrix bmatrix vmatrix displaystyle text textbf
    textit textrm mathrm mathbf mbox boxed quad qquad angle triangle cis
    alpha beta gamma delta theta lambda mu phi omega
"""))  # fmt: skip


def tidy(latex: str) -> str:
    """LaTeX with spelling differences removed that have no mathematical meaning."""
    latex = latex.strip().rstrip(".\\ ").replace("\u2212", "-")
    latex = _JOINED.sub(", ", latex)
    latex = _UNIT.sub(lambda m: "" if _is_unit(m[1] or m[2], bare=not m[1]) else m[0], latex)
    latex = re.sub(rf"{_FONT}\{{\s*([A-Za-z]|[0-9.]+)\s*\}}", r" \1", latex)
    latex = re.sub(r"(?<=[0-9])(?:\\[,! ]|,\s?\\!\s?|\{,\})(?=[0-9]{3}(?![0-9]))", ",", latex)
    latex = re.sub(r"\\?\$|\\(?:left|right|displaystyle)(?![a-zA-Z])", "", latex)
    latex = " ".join(re.sub(r"\\?%|(?<!\\)\\[,!;: ]", " ", latex).split())
    # "1 2" keeps its blank, and outside of brackets "1, 234" does
    listed = r"" if re.match(r"\\?[(\[{]", latex) else r"(?!(?<=,\s)[0-9]{3}(?![0-9]))"
    blank = rf"(\\[A-Za-z]+\s(?=[A-Za-z]))|(?<![0-9])\s{listed}|\s(?![0-9])"
    latex = re.sub(blank, lambda m: m[1] or "", latex)
    latex = re.sub(r"(?<=[0-9A-F])_\{([0-9]+)\}", r"_\1", latex).removesuffix("_10")
    latex = re.sub(r"\\[dtc]frac", r"\\frac", latex)
    latex = re.sub(r"\\frac([0-9])([0-9])", r"\\frac{\1}{\2}", latex)
    return latex if _TRIGONOMETRY.search(latex) else re.sub(r"\^\{?\\circ\}?", "", latex)


def plain_number(latex: str) -> Fraction | None:
    """The value of LaTeX that is one number and nothing else; a unit may follow."""
    latex = re.sub(r"^\\\{([^,]*)\\\}$", r"\1", _NAME.sub("", tidy(latex), count=1))
    if match := _RECURRING.fullmatch(latex):
        sign, whole, start, cycle = match.groups()
        value = Fraction(int(cycle), 10 ** len(start) * (10 ** len(cycle) - 1))
        return (value + Fraction(f"{whole or 0}.{start or 0}")) * (-1 if sign else 1)
    words = number.plain(re.sub(r"^(-?)10\^\{?(-?[0-9]+)\}?$", r"\g<1>1e\2", latex))
    if not _PLAIN.fullmatch(words) or ("," in words and words.strip()[0] in "({"):
        return None
    try:
        return number.value_of(words)
    except number.Torn:
        return None


def _is_unit(words: str, bare: bool) -> bool:
    """Whether the words leave the number before them as it is; bare letters may be a product."""
    if bare and not all(len(word) > 3 or word in _UNITS for word in words.split()):
        return False
    attached = len(words.strip()) == 1  # 1m is a length, 1x a product
    return not re.search(r"\band\b", words) and _one(f"1{'' if attached else ' '}{words.strip()}")


def _one(words: str) -> bool:
    try:
        return number.value_of(words) == 1
    except number.Torn:
        return False


def final_formula(text: str) -> str | None:
    """The LaTeX of the last statement; without one, the only formula of the last line."""
    text = _DISPLAY.sub(lambda m: f"${' '.join((m[1] or m[2]).split())}$", text)
    found = statements(text)
    if found and found[-1].form == "box":
        words = found[-1].span
    elif found:
        last = found[-1]
        words = last.span
        if not words.strip(" *:.$"):
            words = text[last.end :].strip().lstrip("$\n ").partition("\n")[0]
        if number.refused(last.before + " " + words):
            return None
        formulas = _formulas(words)
        if len(formulas) == 1:
            words = formulas[0] if _one(_FORMULA.sub(" 1 ", words)) else ""
    else:
        line = text.rstrip().rpartition("\n")[2]
        formulas = _formulas(line)
        asked = line.endswith("?") or number.refused(line)
        words = formulas[0].rpartition("=")[2] if len(formulas) == 1 and not asked else ""
    words = re.sub(r"^\*\*|\*\*$", "", words.strip())
    words = re.sub(r"^[$ ]+|(?<!\\)[$ ]+$", "", words)
    several = re.search(r"(?<!\\)\$", words)  # math-verify would choose
    return words if words and len(words) <= MAX_LENGTH and not several else None


def _formulas(text: str) -> list[str]:
    return ["".join(groups) for groups in _FORMULA.findall(text)]


def decided(gold: str, answer: str) -> bool | None:
    """Steps 1 to 4 of the comparison with one side of an equation; None when they do not decide."""
    given, said = _unnamed(tidy(gold)), _unnamed(tidy(answer))
    units = _units(gold), _units(answer)
    names = _NAME.findall(tidy(gold)), _NAME.findall(tidy(answer))
    if not said or (all(units) and units[0] != units[1]) or (all(names) and names[0] != names[1]):
        return False
    if given == said:
        return True
    values = plain_number(gold), plain_number(answer)
    if None not in values:
        return values[0] == values[1]
    if word := _WORDS.fullmatch(gold.strip()):
        stated = _WORDS.fullmatch(answer.strip())
        if stated or word[1]:
            words = (stated[1] or stated[2]) if stated else answer
            return tidy_words(words).strip("()") == tidy_words(word[1] or word[2]).strip("()")
    if _signature(given) != _signature(said) or (_IRRATIONAL.search(given) and "." in said):
        return False
    if _RELATION.search(gold) or _ELEMENT.search(answer):
        return None
    lists = _list(given), _list(said)
    if lists[0][0] != lists[1][0] or (lists[0] != lists[1] and r"\pm" not in given + said):
        return False
    if _RELATION.search(said):
        return False
    same = _letters(given) == _letters(said) or _letters(tidy(gold)) == _letters(tidy(answer))
    return None if same else False


def sides(gold: str, answer: str) -> list[str]:
    """What of the answer must equal the reference; nothing if a part of it can't be meant so.

    In `AB = 9 + 9 = 18` it is `9 + 9` and `18`, in `1 < x < 2` for an interval `(1, 2)`.
    """
    given, said = tidy(gold), tidy(answer)
    if number.refused(said) and not number.refused(given):
        return []
    if set(_TEXT.findall(said)) - set(_TEXT.findall(given)) and not _WORDS.fullmatch(gold.strip()):
        return []
    strange = set(_COMMAND.findall(answer)) - set(_COMMAND.findall(gold)) - _COMMANDS
    if (strange and plain_number(answer) is None) or _STRAY.search(answer):
        return []
    if r"\\" in said and r"\begin" not in said:  # two lines
        return []
    if given[:1] in "([" and (between := _BETWEEN.fullmatch(said)):
        low, left, right, high = between.groups()
        return [f"{'(['[left != '<']}{low}, {high}{')]'[right != '<']}"]
    if "=" not in said or "=" in _unnamed(given) or _list(_unnamed(said))[1] > 1:
        return [answer]
    if _NAME.match(given):
        return [answer]
    return [side for side in answer.split("=") if _letters(tidy(side)) <= _letters(given)]


def _unnamed(latex: str) -> str:
    """Without the name of its values: `x=1,x=2` is `1,2`."""
    names = {name for _, name in _NAME.findall(latex)}
    return _NAME.sub(r"\1", latex) if len(names) == 1 else re.sub("=[A-Za-z]$", "", latex)


def _units(latex: str) -> set[str]:
    """The units of measure that the LaTeX names."""
    return {_UNITS[word] for word in re.findall(r"\\?[A-Za-z]+", latex) if word in _UNITS}


def _letters(latex: str) -> set[str]:
    """The variables; upper and lower case differ."""
    latex = re.sub(rf"{_FONT}\{{[^{{}}]*\}}|\\(?:begin|end)\{{\w+\}}", "", latex)
    return set(_GREEK.findall(latex)) | set(re.findall("[A-Za-z]", _COMMAND.sub("", latex)))


def _signature(latex: str) -> tuple:
    """What no spelling changes: base, points in order, a ratio, degrees, a determinant."""
    base = _BASE.search(latex)
    points = re.findall("[A-Z]{2,}", latex)
    return base and latex, points, ":" in latex, r"\circ" in latex, "{vmatrix}" in latex


def _list(latex: str) -> tuple[str, int]:
    """The bracket around tidy LaTeX that lists values, and how many; a set is a bare list."""
    latex = re.sub(r"^\\\{(.*)\\\}$", r"\1", latex)
    depth, commas, inner, whole = 0, 0, 0, latex[:1] in {"(", "["} and latex[-1:] in {")", "]"}
    for position, c in enumerate(latex):
        depth += (c in "([{") - (c in ")]}")
        whole &= depth > 0 or position == len(latex) - 1
        thousands = re.match(r",[0-9]{3}(?![0-9])", latex[position:])
        commas += c in ",;" and depth == 0 and not thousands
        inner += c in ",;" and depth == 1
    return (latex[0] + latex[-1], inner + 1) if whole and inner else ("", commas + 1)


class _Worker:
    """One comparing process, started when it is first needed and again after it was killed."""

    def __init__(self):
        self.process: subprocess.Popen | None = None

    def equal(self, gold: str, answer: str, seconds: float) -> bool:
        if self.process is None or self.process.poll() is not None:
            self._start()
        try:
            self.process.stdin.write(json.dumps([gold, answer, seconds]) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            self.stop()
            return False
        if self._line(10 * seconds + 5) != "true":
            if self.process.poll() is not None:
                self.stop()
            return False
        return True

    def _start(self) -> None:
        self.stop()
        # -P: the worker's folder holds modules named like the standard library's.
        command = [sys.executable, "-P", str(Path(__file__).with_name("latex_worker.py"))]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            bufsize=1,
            start_new_session=True,  # a Ctrl-C in the terminal must not end it while it starts
        )
        if self._line(120) != "ready":
            self.stop()
            raise UserError(
                "LaTeX answers can't be graded: math-verify does not start; "
                "pip install 'math-verify[antlr4_13_2]'"
            )

    def _line(self, seconds: float) -> str:
        """One line of the worker, or "" when it is dead or late; a late one is killed."""
        ready, _, _ = select.select([self.process.stdout], [], [], seconds)
        line = self.process.stdout.readline().strip() if ready else ""
        if not line:
            self.process.kill()
            self.process.wait()
        return line

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process.stdin.close()
            self.process.stdout.close()
            self.process = None


@dataclass(frozen=True)
class LatexGrader:
    """Mathematical equality with the reference, decided in `seconds` of processor time a pair.

    workers: processes that compare at the same time. They live until `close` or the program's end.
    """

    seconds: float = 3.0
    workers: int = 2
    _idle: queue.SimpleQueue = field(default_factory=queue.SimpleQueue, repr=False, compare=False)

    def __post_init__(self):
        for _ in range(self.workers):
            self._idle.put(_Worker())
        atexit.register(self.close)

    def close(self) -> None:
        """Ends the workers; a later `grade` starts new ones."""
        for _ in range(self.workers):
            worker = self._idle.get()
            worker.stop()
            self._idle.put(worker)

    def extract(self, text: str) -> str | None:
        formula = final_formula(text)
        return None if formula is None else _canonical(formula)

    def grade(self, texts: Sequence[str], questions: Sequence[Question]) -> list[Grade]:
        formulas = [final_formula(text) for text in texts]
        formulas = [
            None if f is not None and _copied(f, q) else f
            for f, q in zip(formulas, questions, strict=True)
        ]
        pairs = [(q.answer, f) for q, f in zip(questions, formulas, strict=True)]
        asked = list(dict.fromkeys((gold, f) for gold, f in pairs if f is not None))
        with ThreadPoolExecutor(self.workers) as pool:
            verdicts = dict(zip(asked, pool.map(self._equal, asked), strict=True))
        return [
            Grade(None if f is None else _canonical(f), verdicts.get((gold, f), False))
            for gold, f in pairs
        ]

    def check(self, question: Question) -> str | None:
        """Why the reference answer can't be graded; None when it can."""
        return None if tidy(question.answer) else "the answer holds no formula"

    def _equal(self, pair: tuple[str, str]) -> bool:
        gold, answer = pair
        parts = sides(gold, answer)
        verdicts = [decided(gold, part) for part in parts]
        if not parts or False in verdicts:
            return False
        worker = self._idle.get()
        try:
            return all(
                verdict or worker.equal(tidy(gold), tidy(part), self.seconds)
                for part, verdict in zip(parts, verdicts, strict=True)
            )
        finally:
            self._idle.put(worker)


def _copied(formula: str, question: Question) -> bool:
    """Whether the formula is what the question asks to compute, not what comes out of it."""
    if plain_number(question.answer) is None or plain_number(formula) is not None:
        return False
    asked, copied = (_unspaced(text) for text in (question.text, formula))
    return copied in asked


def _unspaced(latex: str) -> str:
    return re.sub(r"[\s{}()]|\\(?:left|right|displaystyle)(?![a-zA-Z])|\\[,!;: ]", "", tidy(latex))


def _canonical(formula: str) -> str:
    value = plain_number(formula)
    return number.canonical(value) if value is not None else tidy(formula) or formula
