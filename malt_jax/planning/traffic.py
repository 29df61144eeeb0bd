"""Reads from the text of a compiled decode program what one step moves to and from memory, by part.

Every instruction reads its operands and writes its results, except for what XLA does in place: a
slice reads what it returns, an update writes what is new. Arrays in a TPU's on-chip memory (S(1) in
their layout) cost nothing. Bytes are those of the shapes, without the padding of their tiles.

A kernel's operands are whole caches, of which it reads a part, so kernels are left out here and
counted by their work lists (`kernel_bytes`).
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from malt_jax.planning.hlo import BITS

KERNEL = "tree_attention"
PARTS = (
    # Names that the programs give to what they compute (`jax.named_scope`).
    ("append/", "append"),
    ("attention/", "attention"),
    ("lora/", "LoRA"),
    ("draw/", "head and draw"),
    ("dot_general", "weights"),
)
OTHER = "other"

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([\w\-]+)\((.*)$")
_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\](\{[^}]*\})?")
_CALLED = re.compile(r"(?:body|condition|to_apply|calls)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_BRANCH = re.compile(r"(?:true|false)_computation=%?([\w.\-]+)")
_NAME, _CYCLES = re.compile(r'op_name="([^"]*)"'), re.compile(r'"estimated_cycles":"(\d+)"')
# What moves nothing, and the second halves of asynchronous pairs, whose first halves count.
_FREE = frozenset(
    [
        "parameter",
        "get-tuple-element",
        "tuple",
        "bitcast",
        "constant",
        "after-all",
        "partition-id",
        "copy-done",
        "async-done",
        "slice-done",
        "opt-barrier",
        "iota",
    ]
)


class Traffic(NamedTuple):
    """What one part of a step costs."""

    bytes: float = 0
    cycles: float = 0
    """Cycles by the compiler's own estimate, where it gives one."""


class _Instruction(NamedTuple):
    name: str
    type: str
    op: str
    operands: list[str]
    rest: str


_Program = Mapping[str, Sequence[_Instruction]]
"""The instructions of each computation."""


def step_traffic(text: str) -> dict[str, Traffic]:
    """{part: traffic} of one turn of a program's outermost loops.

    Of a conditional's branches the one that moves least counts: a step that filters nothing and
    draws in every row.
    """
    program, entry = _read(text)
    totals: dict[str, Traffic] = defaultdict(Traffic)
    for instruction in program[entry]:
        if instruction.op == "while":
            _add(totals, _computation(program, _called(instruction)[-1]))
    return dict(totals)


def _read(text: str) -> tuple[_Program, str]:
    program: dict[str, list[_Instruction]] = {}
    name = entry = ""
    for line in text.splitlines():
        if found := _COMPUTATION.match(line):
            name = found[2]
            program[name] = []
            entry = name if found[1] else entry
        elif found := _INSTRUCTION.match(line):
            operands, rest = _operands(found[4])
            if found[3] == "parameter":
                operands = [found[4].partition(")")[0]]  # its number
            program[name].append(_Instruction(found[1], found[2], found[3], operands, rest))
    return program, entry


def _operands(text: str) -> tuple[list[str], str]:
    """The operands' names, and what follows the parenthesis that closes them."""
    depth, end = 1, 0
    while depth:
        depth += (text[end] == "(") - (text[end] == ")")
        end += 1
    return re.findall(r"%([\w.\-]+)", text[:end]), text[end:]


def _called(instruction: _Instruction) -> list[str]:
    names = _CALLED.findall(instruction.rest) + _BRANCH.findall(instruction.rest)
    for group in _BRANCHES.findall(instruction.rest):
        names += [part.strip().lstrip("%") for part in group.split(",")]
    return names


def _add(totals: dict[str, Traffic], more: Mapping[str, Traffic]) -> None:
    for part, traffic in more.items():
        totals[part] = Traffic(*(a + b for a, b in zip(totals[part], traffic, strict=True)))


def _computation(program: _Program, name: str) -> dict[str, Traffic]:
    totals: dict[str, Traffic] = defaultdict(Traffic)
    types = {one.name: one.type for one in program[name]}
    for one in program[name]:
        if one.op == "conditional":
            branches = [_computation(program, branch) for branch in _called(one)]
            least = min(branches, key=lambda b: sum(traffic.bytes for traffic in b.values()))
            _add(totals, least)
        elif one.op in ("while", "call"):
            for inner in _called(one):
                _add(totals, _computation(program, inner))
        elif one.op not in _FREE and not _is_kernel(one):
            found = _CYCLES.search(one.rest)
            traffic = Traffic(_bytes_moved(program, one, types), int(found[1]) if found else 0)
            _add(totals, {_part(one): traffic})
    return totals


def _is_kernel(one: _Instruction) -> bool:
    return one.op == "custom-call" and KERNEL in one.name + one.rest


def _part(one: _Instruction) -> str:
    found = _NAME.search(one.rest)
    name = found[1] if found else ""
    return next((part for word, part in PARTS if word in name), OTHER)


def array_bytes(text: str) -> int:
    """Bytes of the arrays of a type that are in the device's main memory."""
    return sum(
        math.prod(int(size) for size in shape.split(",") if size) * BITS.get(kind, 0) // 8
        for kind, shape, layout in _ARRAY.findall(text)
        if "S(" not in layout
    )


def _bytes_moved(program: _Program, one: _Instruction, types: Mapping[str, str]) -> int:
    of = lambda name: array_bytes(types.get(name, ""))  # noqa: E731
    out = array_bytes(one.type)
    if one.op in ("dynamic-slice", "slice", "gather"):
        return 2 * out
    if one.op == "dynamic-update-slice":
        return 2 * of(one.operands[1])
    if one.op in ("copy-start", "async-start", "slice-start"):
        # The type is (copy, source, context) of a copy, and ((source), result, context) of others.
        arrays = list(_ARRAY.finditer(one.type))
        moved = arrays[0 if one.op == "copy-start" else min(1, len(arrays) - 1)][0]
        return array_bytes(moved) + min(of(one.operands[0]), _full_bytes(moved))
    if one.op == "fusion":
        return _fused(program[_called(one)[0]], [of(name) for name in one.operands], out)
    return out + sum(map(of, one.operands))


def _full_bytes(text: str) -> int:
    """Bytes of the first array of a type, wherever it is."""
    found = _ARRAY.search(text)
    return array_bytes(f"{found[1]}[{found[2]}]") if found else 0


def _fused(body: Sequence[_Instruction], operands: Sequence[int], out: int) -> int:
    """A fusion: operands that it only slices, and results that it updates in place, in part."""
    users: dict[str, list[tuple[_Instruction, int]]] = defaultdict(list)
    for one in body:
        for index, operand in enumerate(one.operands):
            users[operand].append((one, index))
    types = {one.name: one.type for one in body}
    total, in_place = 0, 0
    for parameter in (one for one in body if one.op == "parameter"):
        size = operands[int(parameter.operands[0])]
        uses = _uses(parameter.name, users)
        if uses and all(_only(use, "dynamic-slice", "slice", "gather") for use in uses):
            total += min(size, sum(_full_bytes(use.type) for use, _ in uses))
        elif uses and all(_only(use, "dynamic-update-slice") for use in uses) and size:
            in_place += sum(
                _full_bytes(use.type) - _full_bytes(types[use.operands[1]]) for use, _ in uses
            )
        else:
            total += size
    return total + max(0, out - in_place)


def _uses(name: str, users: Mapping[str, Any]) -> list[tuple[_Instruction, int]]:
    found: list[tuple[_Instruction, int]] = []
    for one, index in users.get(name, ()):
        found += _uses(one.name, users) if one.op == "bitcast" else [(one, index)]
    return found


def _only(use: tuple[_Instruction, int], *ops: str) -> bool:
    """Whether a use is the first operand of such an operation."""
    return use[0].op in ops and use[1] == 0


def extended(
    low: Mapping[str, Traffic], high: Mapping[str, Traffic], depths: Sequence[int], depth: int
) -> dict[str, Traffic]:
    """The traffic at `depth` layers, on the line through that at two depths."""
    share = (depth - depths[0]) / (depths[1] - depths[0])
    line: Callable[[float, float], float] = lambda a, b: max(0.0, a + (b - a) * share)  # noqa: E731
    return {
        part: Traffic(*map(line, low.get(part, Traffic()), high.get(part, Traffic())))
        for part in dict.fromkeys([*low, *high])
    }
