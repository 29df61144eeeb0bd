r"""Grading mathematical answers in LaTeX.

The last statement of an answer counts (see `statements`); without one, the only formula of the
last line. It is compared with the reference in this order, and the first that applies decides:

1. the same after tidying (`\dfrac`, `\left`, blanks, units in `\text{}`);
2. both plain numbers: exactly, as fractions, the percent sign being a unit (as in `number`);
3. the reference a word (`\text{Evelyn}`): the same word;
4. different number bases, or brackets of a different kind (`(1,2)` and `\{1,2\}`): unequal;
5. math-verify, in a process that is killed at the time limit, which counts as unequal.
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

_FORMULA = re.compile(r"\$\$(.+?)\$\$|\$(.+?)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_SPACING = re.compile(
    r"\\(?:left|right|displaystyle|[,!;: ]|quad|qquad)(?![a-zA-Z])|\\?\$"
    r"|\s(?![0-9])|(?<![0-9,])\s|(?<=,)\s(?![0-9]{3}(?![0-9]))"  # "1 2" and "1, 234" keep theirs
)
_PLAIN = re.compile(r"\s*[({]?\s*[-+]?\s*[0-9.][0-9.,/]*(?:e[-+]?[0-9]+)?\s*[)}]?\s*")
_WORDS = re.compile(r"\\(?:text|textbf|mathrm|mbox)\s*\{([^{}]*)\}\.?|([A-Za-z][A-Za-z ]+)\.?")
_UNIT = re.compile(
    r"(?<=[0-9}%])\s*\\(?:text|mathrm|mbox)\s*\{\s*[A-Za-z][^{}]*\}(?:\^\{?[23]\}?)?"
)
_RELATION = re.compile(r"\\(?:neq?|not|leq?|geq?|lt|gt)(?![a-zA-Z])|[<>≠≤≥]")
_LIST = re.compile(r"[0-9]\s*[,;]\s+[0-9]|\d\s+\d")
_BASE = re.compile(r"(?<=[0-9A-F])_\{?([0-9]+)\}?")


def tidy(latex: str) -> str:
    """LaTeX with spelling differences removed that have no mathematical meaning."""
    latex = latex.strip().rstrip(".").replace("\u2212", "-").replace("\\%", "").replace("%", "")
    latex = " ".join(_UNIT.sub("", latex).replace(",\\!", "{,}").split())
    latex = re.sub(r"(?<=[0-9])\{,\}(?=[0-9]{3})", ",", _SPACING.sub("", latex))
    latex = re.sub(r"\\[dt]frac", r"\\frac", latex)
    latex = re.sub(r"\\frac([0-9])([0-9])", r"\\frac{\1}{\2}", latex)
    return re.sub(r"\^\{?\\circ\}?", "", latex)


def plain_number(latex: str) -> Fraction | None:
    """The value of LaTeX that is one number and nothing else; a unit in `\\text{}` may follow."""
    words = number.plain(re.sub(r"^[A-Za-z]=", "", tidy(latex)))
    if not _PLAIN.fullmatch(words):
        return None
    try:
        return number.value_of(words)
    except number.Torn:
        return None


def final_formula(text: str) -> str | None:
    """The LaTeX of the last statement; without one, the only formula of the last line."""
    found = statements(text)
    if found:
        last = found[-1]
        words = last.span
        if last.form != "box":
            if number.refused(last.before + " " + words):
                return None
            if not words.strip(" *:.$"):
                words = text[last.end :].strip().lstrip("$\n ").partition("\n")[0]
            formulas = _formulas(words)
            words = formulas[0] if len(formulas) == 1 else words
    else:
        formulas = _formulas(text.rstrip().rpartition("\n")[2])
        words = formulas[0].rpartition("=")[2] if len(formulas) == 1 else ""
    words = re.sub(r"^\*\*|\*\*$", "", words.strip()).strip(" $")
    return words if words and len(words) <= MAX_LENGTH else None


def _formulas(text: str) -> list[str]:
    return ["".join(groups) for groups in _FORMULA.findall(text)]


def decided(gold: str, answer: str) -> bool | None:
    """Steps 1 to 4 of the comparison; None when they do not decide."""
    if tidy(gold) == tidy(answer):
        return bool(tidy(answer))
    if number.refused(answer) and not number.refused(gold):
        return False
    sides = {plain_number(side) for side in answer.split("=")} - {None}
    if len(sides) > 1:
        return False  # 17 = 18
    values = plain_number(gold), plain_number(answer)
    if None not in values:
        return values[0] == values[1]
    if word := _WORDS.fullmatch(gold.strip()):
        given = _WORDS.fullmatch(answer.strip())
        said = (given[1] or given[2]) if given else answer
        return tidy_words(said).strip("()") == tidy_words(word[1] or word[2]).strip("()")
    if _RELATION.search(answer) and not _RELATION.search(gold):
        return False
    if values[0] is not None and _LIST.search(answer):
        return False
    bases = _BASE.findall(gold), _BASE.findall(answer)
    if all(bases) and bases[0] != bases[1]:
        return False
    kinds = _bracket(gold), _bracket(answer)
    if all(kinds) and kinds[0] != kinds[1]:
        return False
    return None


def _bracket(latex: str) -> str:
    latex = tidy(latex)
    return "{" if latex.startswith(r"\{") else latex[:1] if latex[:1] in "([" else ""


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
        if (verdict := decided(*pair)) is not None:
            return verdict
        worker = self._idle.get()
        try:
            gold, answer = (re.sub(r"\\?%", "", latex) for latex in pair)
            return worker.equal(gold, answer, self.seconds)
        finally:
            self._idle.put(worker)


def _canonical(formula: str) -> str:
    value = plain_number(formula)
    return number.canonical(value) if value is not None else tidy(formula) or formula
