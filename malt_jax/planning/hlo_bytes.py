"""Reads from the text of a compiled program how many bytes it moves to and from memory.

XLA's GPU compiler gives no costs for a program, but its text names every kernel with the arrays
that it reads and writes. Caches that may hold an array between two kernels are not counted on.
"""

from __future__ import annotations

import re
from collections import defaultdict
from typing import NamedTuple

from malt_jax.planning.hlo import _ARRAY, _COMPUTATION, _TRIPS, _bytes, _called

_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([\w\-]+)\((.*)$")
_NAME = re.compile(r"%([\w.\-]+)")
# No kernel of their own: they name, group or wait for values that others have made.
_FREE = {"parameter", "get-tuple-element", "tuple", "bitcast", "constant", "after-all", "call",
         "while", "conditional", "partition-id", "replica-id", "opt-barrier", "copy-done",
         "async-done", "all-gather-done", "all-reduce-done"}  # fmt: skip
_SLICES = {"dynamic-slice", "slice", "gather"}


class Instruction(NamedTuple):
    """One line of a computation."""

    name: str
    shape: str
    kind: str
    operands: tuple[str, ...]
    line: str


class Program(NamedTuple):
    """A program's computations by name, and the shape of every value."""

    entry: str
    computations: dict[str, list[Instruction]]
    shapes: dict[str, str]


def read_program(text: str) -> Program:
    """Reads the text of a compiled program."""
    computations: dict[str, list[Instruction]] = {}
    entry = name = ""
    for line in text.splitlines():
        if found := _COMPUTATION.match(line):
            name = found[1]
            computations[name] = []
            entry = name if line.startswith("ENTRY") else entry
        elif found := _INSTRUCTION.match(line):
            operands = tuple(_NAME.findall(_arguments(found[4])))
            computations[name].append(Instruction(found[1], found[2], found[3], operands, line))
    shapes = {i.name: i.shape for lines in computations.values() for i in lines}
    return Program(entry, computations, shapes)


def bytes_moved(text: str) -> int:
    """Bytes that one execution reads and writes.

    A loop counts as often as it runs, or once where the compiler does not know that. Every branch
    of a conditional counts.
    """
    program = read_program(text)
    return _of_computation(program, program.entry)


def loop_concatenations(text: str) -> list[str]:
    """The shapes of what loops concatenate, of two dimensions as weights have."""
    program = read_program(text)
    inside = [name for lines in program.computations.values() for i in lines
              if i.kind == "while" for name in _called(i.line)]  # fmt: skip
    reached: set[str] = set()
    while inside:
        name = inside.pop()
        if name not in reached and name in program.computations:
            reached.add(name)
            inside += [called for i in program.computations[name] for called in _called(i.line)]
    return [
        i.shape
        for name in sorted(reached)
        for i in program.computations[name]
        if i.kind == "concatenate" and i.shape.split("]")[0].count(",") == 1
    ]


def _arguments(rest: str) -> str:
    """The part of a line up to the parenthesis that ends its operands."""
    depth = 1
    for place, character in enumerate(rest):
        depth += (character == "(") - (character == ")")
        if not depth:
            return rest[:place]
    return rest


def _of_computation(program: Program, name: str) -> int:
    total = 0
    for one in program.computations.get(name, ()):
        if one.kind in ("while", "conditional", "call"):
            trips = _TRIPS.search(one.line) if one.kind == "while" else None
            inner = sum(_of_computation(program, called) for called in _called(one.line))
            total += inner * (int(trips[1]) if trips else 1)
        if one.kind not in _FREE:
            total += _of_kernel(program, one)
    return total


def _of_kernel(program: Program, one: Instruction) -> int:
    if one.kind in _SLICES:
        return 2 * _size(one.shape)
    if one.kind == "dynamic-update-slice":
        return 2 * _size(program.shapes.get(one.operands[1], ""))
    if one.kind == "fusion":
        return _of_fusion(program, one)
    return _size(one.shape) + sum(_size(program.shapes.get(o, "")) for o in one.operands)


def _of_fusion(program: Program, one: Instruction) -> int:
    """A fused kernel reads its arguments and writes its result, or only the parts that it uses."""
    (name,) = _called(one.line)[:1] or ("",)
    body = program.computations.get(name, [])
    users: dict[str, list[tuple[Instruction, int]]] = defaultdict(list)
    for user in body:
        for place, operand in enumerate(user.operands):
            users[operand].append((user, place))

    def uses(value: str) -> list[tuple[Instruction, int]]:
        direct = users[value]
        return [u for user in direct for u in (uses(user[0].name) if user[0].kind == "bitcast"
                                               else [user])]  # fmt: skip

    total, written = 0, _size(one.shape)
    for parameter in (i for i in body if i.kind == "parameter"):
        size, used = _size(parameter.shape), uses(parameter.name)
        if used and all(user.kind in _SLICES and place == 0 for user, place in used):
            size = min(size, sum(_size(user.shape) for user, _ in used))
        elif used and all(
            user.kind == "dynamic-update-slice" and place == 0 for user, place in used
        ):
            # Updated in place: all but the update stays where it is.
            size = 0
            for user, _ in used:
                update = _size(program.shapes.get(user.operands[1], ""))
                written -= _size(user.shape) - update
        total += size
    return total + max(0, written)


def _size(shape: str) -> int:
    return sum(_bytes(*array) for array in _ARRAY.findall(shape))
