"""Reads the text of a compiled program (HLO): its computations, and what moves between chips."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
# In bits, because int4 has half a byte; a predicate takes a whole byte.
BITS = {"pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "bf16": 16,
        "f16": 16, "s32": 32, "u32": 32, "f32": 32, "s64": 64, "u64": 64, "f64": 64}  # fmt: skip

# The text is a list of computations: a header that ends in `{`, then one instruction per line.
# Loops, branches and calls name the computations that they run.
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([\w\-]+)\((.*)$")
_OPERAND = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(
    r"(?:body|condition|to_apply|calls|true_computation|false_computation)=%?([\w.\-]+)"
)
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\](\{[^}]*\})?")


class Instruction(NamedTuple):
    """One line of a computation."""

    name: str
    type: str
    op: str
    operands: Sequence[str]
    """Names of values of the same computation; of a parameter its number."""
    rest: str
    """What follows the operands: attributes, metadata and the backend's notes."""

    @property
    def called(self) -> list[str]:
        """The computations that it runs; of a loop both its condition and its body."""
        names = _CALLED.findall(self.rest)
        for group in _BRANCHES.findall(self.rest):
            names += [part.strip().lstrip("%") for part in group.split(",")]
        return names

    @property
    def body(self) -> str:
        """The computation that a loop repeats."""
        return next(iter(re.findall(r"body=%?([\w.\-]+)", self.rest)), "")

    @property
    def trips(self) -> int:
        """How often a loop runs; 1 where the compiler does not know that, and for all others."""
        found = _TRIPS.search(self.rest) if self.op == "while" else None
        return int(found[1]) if found else 1


class Array(NamedTuple):
    """An array of a type."""

    bytes: int
    on_chip: bool
    """Whether it lies in a TPU's on-chip memory and not in its main memory."""


@dataclass(frozen=True)
class Program:
    """The instructions of each computation, and where the program begins."""

    entry: str
    computations: Mapping[str, Sequence[Instruction]]

    def __getitem__(self, name: str) -> Sequence[Instruction]:
        return self.computations.get(name, ())


def read(text: str) -> Program:
    """Reads the text of a compiled program."""
    computations: dict[str, list[Instruction]] = {}
    entry = name = ""
    for line in text.splitlines():
        if found := _COMPUTATION.match(line):
            name = found[2]
            computations[name] = []
            entry = name if found[1] else entry
        elif name and (found := _INSTRUCTION.match(line)):
            inside, rest = _operands(found[4])
            operands = [inside] if found[3] == "parameter" else _OPERAND.findall(inside)
            computations[name].append(Instruction(found[1], found[2], found[3], operands, rest))
    return Program(entry, computations)


def _operands(text: str) -> tuple[str, str]:
    """What stands before and after the parenthesis that ends the operands."""
    depth = 1
    for place, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if not depth:
            return text[:place], text[place + 1 :]
    return text, ""


def arrays(type_: str) -> Iterator[Array]:
    """The arrays of a type, which is a tuple where there are several."""
    for kind, shape, layout in _ARRAY.findall(type_):
        elements = math.prod(int(size) for size in shape.split(",") if size)
        yield Array(elements * BITS.get(kind, 0) // 8, "S(" in layout)


def collectives(text: str) -> dict[str, dict[str, int]]:
    """{kind: {count, bytes}} of one execution; bytes are those that arrive at a chip.

    A loop's collectives count as often as it runs, or once where the compiler does not know that.
    Those of every branch count, though one branch runs: an upper bound.
    """
    program = read(text)
    totals: dict[str, dict[str, int]] = {}

    def count(name: str, times: int) -> None:
        for one in program[name]:
            # Of an asynchronous pair only the start matches, so the pair counts once.
            kind = one.op.removesuffix("-start")
            if kind in KINDS:
                sizes = [array.bytes for array in arrays(one.type)]
                # A start returns (operands, results): the second half are its results.
                halved = kind != one.op and len(sizes) > 1
                sizes = sizes[len(sizes) // 2 :] if halved else sizes
                total = totals.setdefault(kind, {"count": 0, "bytes": 0})
                total["count"] += times
                total["bytes"] += times * sum(sizes)
            for called in one.called:
                count(called, times * one.trips)

    count(program.entry, 1)
    return totals
