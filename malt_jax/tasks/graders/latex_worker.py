r"""The process that compares two LaTeX answers exactly; `comparer` starts, feeds and replaces it.

One JSON line in, `[gold, answer, seconds]`; one out, `true` or `false`. Both are tidied LaTeX.
latex2sympy reads single expressions, and only whole ones: its parser stops at what it does not
understand, and what it is known to drop or misread (`12_5`, `x'`, `1/2x`) is refused here.
Brackets, lists, relations and matrices are taken apart here, because it reads a point as an
interval. SymPy decides whether a difference is zero, with decimals as fractions: nothing is
rounded. What would grow without bounds (`10^{10^{10}}`, a factorial of a factorial) is not
evaluated.

A comparison that does not end is ended by the kernel: the timer's default action kills this
process, because SymPy may be inside C code, where no exception gets through. The limit is processor
time, so that a busy machine grades as an idle one does; waiting may take ten times that.
"""

from __future__ import annotations

import json
import logging
import os
import re
import resource
import signal
import sys
from dataclasses import dataclass
from typing import Any

import sympy
from latex2sympy2_extended.latex2sympy2 import ConversionConfig, _Latex2Sympy

MEMORY_BYTES = 4 << 30
MAX_BITS = 200_000  # of a power that is evaluated
MAX_FACTORIAL = 10_000

_COMMANDS = {
    "frac", "sqrt", "pi", "cdot", "times", "div", "infty", "binom", "sin", "cos", "tan", "cot",
    "sec", "csc", "arcsin", "arccos", "arctan", "log", "ln", "exp", "alpha", "beta", "gamma",
    "delta", "theta", "lambda", "mu", "phi", "omega", "left", "right",
}  # fmt: skip
_MISREAD = re.compile(
    r"[0-9]\s+[0-9]|\.[0-9]*\.|[0-9A-Z]_|'|!!|I|[A-Z]{2,}|\de\d|(?<![\\A-Za-z])[a-z][0-9]|\.(?![0-9])"
    r"|/(?:[0-9]+(?=[a-zA-Z\\(])|[a-zA-Z](?=[a-zA-Z\\(]))"
)
_RELATION = re.compile(r"(<|>|\\leq?(?![a-z])|\\geq?(?![a-z])|\\neq?(?![a-z])|=)")
_SIGNS = {r"\le": "≤", r"\leq": "≤", r"\ge": "≥", r"\geq": "≥", r"\ne": "≠", r"\neq": "≠"}
_TURNED = {"<": ">", ">": "<", "≤": "≥", "≥": "≤"}


class Unread(ValueError):
    """LaTeX that is not read whole."""


@dataclass(frozen=True)
class Parts:
    """A point, an interval, a list, a union, a matrix or a relation, with what it is made of.

    kind: the brackets `()`, `[)`, ...; `,` for a list or set; `∪`; `:` for a ratio; the shape of a
          matrix; the sign of a relation.
    variable: what an interval is about, where it was written as a relation.
    """

    kind: str
    items: tuple[Any, ...]
    variable: str = ""


def equal(gold: str, answer: str) -> bool:
    """Whether two tidied formulas are the same, exactly. Raises any error for what is not read."""
    return _same(_read(gold), _read(answer))


def _read(latex: str) -> Any:
    """A SymPy expression, or `Parts` of them."""
    latex = latex.strip()
    # 1. A matrix, cell by cell.
    if matrix := re.fullmatch(r"\\begin\{([pb])matrix\}(.*)\\end\{\1matrix\}", latex):
        rows = [row.split("&") for row in matrix[2].rstrip("\\ ").split(r"\\")]
        shape = f"{len(rows)}x{len(rows[0])}"
        return Parts(shape, tuple(_read(cell) for row in rows for cell in row))
    # 2. A union of sets.
    if len(sets := _split(latex, r"\\cup(?![a-zA-Z])")) > 1:
        return Parts("∪", tuple(_read(part) for part in sets))
    # 3. A set that is described by its condition, `\{x\mid ...\}`.
    if built := re.fullmatch(r"\\\{([a-zA-Z])(?:\\mid|\||:)\s*(.*)\\\}", latex):
        return _read(built[2])
    # 4. A set or list, or the two values of `\pm`.
    bare = re.fullmatch(r"\\\{(.*)\\\}", latex)
    inner = bare[1] if bare else latex
    if not bare and inner[:1] not in tuple("(["):  # in brackets a comma separates always
        inner = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", inner)
    items = _split(inner, "[,;]")
    items = [one for item in items for one in _both_signs(item)]
    if len(items) > 1:
        read = tuple(_read(item) for item in items)
        ranges = all(isinstance(item, Parts) and item.variable for item in read)
        return Parts("∪" if ranges else ",", read)
    (latex,) = items
    # 5. A point or an interval, whose brackets say which.
    if (
        latex[:1] in tuple("([")
        and _closes(latex)
        and len(inside := _split(latex[1:-1], "[,;]")) > 1
    ):
        return Parts(latex[0] + latex[-1], tuple(_read(item) for item in inside))
    # 6. A ratio.
    if len(ratio := latex.split(":")) > 1:
        return Parts(":", tuple(_read(item) for item in ratio))
    # 7. `x\in` something: the set is compared, with the variable beside it.
    if element := re.fullmatch(r"([a-zA-Z])\\in(?![a-z])(.*)", latex):
        found = _read(element[2])
        return Parts(found.kind, found.items, element[1]) if isinstance(found, Parts) else found
    # 8. A relation, or one expression.
    return _relation(latex) if _RELATION.search(latex) else _expression(latex)


def _split(latex: str, separator: str) -> list[str]:
    """The parts between separators that are in no bracket."""
    parts, start, depth = [], 0, 0
    for match in re.finditer(rf"[(\[{{)\]}}]|{separator}", latex):
        if match[0] in tuple("([{"):
            depth += 1
        elif match[0] in tuple(")]}"):
            depth -= 1
        elif depth == 0:
            parts.append(latex[start : match.start()])
            start = match.end()
    return [*parts, latex[start:]]


def _closes(latex: str) -> bool:
    """Whether the first bracket is closed by the last character and not before."""
    depth = 0
    for position, c in enumerate(latex):
        depth += (c in "([{") - (c in ")]}")
        if depth == 0:
            return position == len(latex) - 1 and c in ")]"
    return False


def _both_signs(latex: str) -> list[str]:
    if r"\pm" not in latex:
        return [latex]
    if r"\mp" in latex:
        raise Unread(latex)
    return [re.sub(r"\\pm(?![a-zA-Z])", sign, latex) for sign in ("+", "-")]


def _relation(latex: str) -> Parts:
    """`1<x\\le2` as the interval `(1,2]` of x, `x>2` as `(2,∞)`, any other as a sign and 0."""
    # The group in the pattern keeps the signs: terms are at even places, signs at odd ones.
    sides = [side.strip() for side in _RELATION.split(latex)]
    terms, signs = sides[::2], [_SIGNS.get(sign, sign) for sign in sides[1::2]]
    # Turned round, so that only < and ≤ are left to handle.
    if len(signs) == 2 and set(signs) <= {">", "≥"}:
        terms, signs = terms[::-1], [_TURNED[sign] for sign in reversed(signs)]
    if len(signs) == 2 and set(signs) <= {"<", "≤"} and re.fullmatch("[a-zA-Z]", terms[1]):
        kind = ("[" if signs[0] == "≤" else "(") + ("]" if signs[1] == "≤" else ")")
        return Parts(kind, (_expression(terms[0]), _expression(terms[2])), terms[1])
    if len(signs) != 1:
        raise Unread(latex)
    (sign,), (left, right) = signs, map(_expression, terms)
    # The variable goes to the left: `2<x` becomes `x>2`.
    if right.is_Symbol and not left.is_Symbol:
        left, right, sign = right, left, _TURNED.get(sign, sign)
    if sign in _TURNED and left.is_Symbol and not right.free_symbols:
        if sign in "<≤":
            return Parts("(" + ("]" if sign == "≤" else ")"), (-sympy.oo, right), left.name)
        return Parts(("[" if sign == "≥" else "(") + ")", (right, sympy.oo), left.name)
    # `a>b` becomes `b-a<0`, so that both ways of writing it compare as equal.
    if sign in ">≥":
        left, right, sign = right, left, _TURNED[sign]
    return Parts(sign, (left - right,))


class _Reader(_Latex2Sympy):
    """latex2sympy, without its habit of adding `2(3)` and `5\\binom42` up like mixed fractions."""

    def convert_postfix_list(self, arr: list[Any], i: int = 0) -> Any:
        factors = [self.convert_postfix(factor) for factor in arr[i:]]
        if len(factors) > 1 and not all(isinstance(factor, sympy.Expr) for factor in factors):
            raise Unread("a product of something else than numbers")
        # The product is not evaluated yet, so that `_evaluated` can refuse what is too large.
        return sympy.Mul(*factors, evaluate=False) if len(factors) > 1 else factors[0]


def _expression(latex: str) -> Any:
    """One expression, read whole and evaluated exactly."""
    # A degree is a number; a mixed fraction is a sum; a decimal is a fraction.
    latex = re.sub(r"([0-9.]+)\^\{?\\circ\}?", r"(\1\\cdot\\frac{\\pi}{180})", latex)
    latex = re.sub(r"(?<![0-9.}\w])([0-9]+)(\\frac\{[0-9]+\}\{[0-9]+\})", r"(\1+\2)", latex)
    strange = set(re.findall(r"\\([A-Za-z]+)", latex)) - _COMMANDS
    if strange or _MISREAD.search(re.sub(r"\\[A-Za-z]+", r"\\", latex)):
        raise Unread(latex)
    latex = re.sub(
        r"([0-9]*)\.([0-9]+)", lambda m: rf"\frac{{{m[1]}{m[2]}}}{{1{'0' * len(m[2])}}}", latex
    )
    reader = _Reader(config=ConversionConfig(lowercase_symbols=False))
    parser = reader.create_parser(latex)
    parser.math()
    if parser.getTokenStream().LA(1) != -1:  # the end of the text
        raise Unread(latex)
    read = _evaluated(reader.parse(latex))
    if not isinstance(read, sympy.Expr) or read.has(sympy.zoo, sympy.nan):
        raise Unread(latex)
    return read.subs(sympy.Symbol("i"), sympy.I)


def _evaluated(node: Any) -> Any:
    """The node with its operations carried out, from the leaves up."""
    if not node.args:
        return node
    args = [_evaluated(arg) for arg in node.args]
    if node.is_Pow and args[0].is_Rational and args[1].is_Rational:
        # The result has about as many bits as the base times the exponent.
        size = max(args[0].p.bit_length(), args[0].q.bit_length())
        if size > 1 and size * abs(args[1]) > MAX_BITS:
            raise Unread("a number too long to write down")
    if isinstance(node, sympy.factorial) and args[0].is_number and not args[0] <= MAX_FACTORIAL:
        raise Unread("a factorial too long to write down")
    return node.func(*args)


def _same(a: Any, b: Any) -> bool:
    if not (isinstance(a, Parts) and isinstance(b, Parts)):
        return not (isinstance(a, Parts) or isinstance(b, Parts)) and _is_zero(a, b)
    if a.kind != b.kind or len(a.items) != len(b.items):
        return False
    if a.variable and b.variable and a.variable != b.variable:
        return False
    if a.kind in (",", "∪"):
        return _same_in_some_order(list(a.items), list(b.items))
    if a.kind in "=≠<≤":
        return _same_relation(a.kind, a.items[0], b.items[0])
    return all(_same(x, y) for x, y in zip(a.items, b.items, strict=True))


def _same_in_some_order(left: list[Any], right: list[Any]) -> bool:
    """Equality is transitive, so the first partner that fits is as good as any other."""
    for item in left:
        partner = next((i for i, other in enumerate(right) if _same(item, other)), None)
        if partner is None:
            return False
        del right[partner]
    return True


def _same_relation(sign: str, a: Any, b: Any) -> bool:
    """Whether `a` and `b` relate to 0 alike: one is the other times a number of the right sign."""
    ratio = sympy.simplify(a / b) if b != 0 else sympy.nan
    return bool(ratio.is_number and ratio.is_finite and (ratio > 0 if sign in "<≤" else ratio != 0))


def _is_zero(a: Any, b: Any) -> bool:
    """Whether two expressions are equal; True only where SymPy proves it."""
    if a == b:
        return True
    difference = sympy.simplify(a - b)
    # `equals` returns None where SymPy cannot decide, and that is not equal here.
    return bool(difference == 0 or difference.equals(0) is True)


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # nothing but answers goes to the parent
    logging.disable(logging.CRITICAL)
    equal("1", "2")  # imports
    print("ready", file=out, flush=True)
    for line in sys.stdin:
        gold, answer, seconds = json.loads(line)
        # Two limits: processor time, and wall-clock time for a comparison that only waits.
        signal.setitimer(signal.ITIMER_PROF, seconds)
        signal.setitimer(signal.ITIMER_REAL, 10 * seconds)
        try:
            verdict = equal(gold, answer)
        except Exception:  # whatever an expression can provoke, it is not equal
            verdict = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(verdict), file=out, flush=True)


if __name__ == "__main__":
    main()
