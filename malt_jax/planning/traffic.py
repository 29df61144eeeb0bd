"""Reads from the text of a compiled program what it moves to and from memory, by part.

Every instruction reads its operands and writes its results, except for what XLA does in place: a
slice reads what it returns, an update writes what is new. Arrays in a TPU's on-chip memory (S(1) in
their layout) cost nothing, and caches that may hold an array between two kernels are not counted
on. Bytes are those of the shapes, without the padding of their tiles. XLA's compiler for TPUs
counts the same for most programs, but that for GPUs gives no costs.

The attention kernel's operands are whole caches, of which it reads a part, so it is left out here
and counted by its work lists (`kernel_bytes`).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from malt_jax.planning import hlo
from malt_jax.planning.hlo import Instruction, Program

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
Branches = Literal["least", "all"]
"""What counts of a conditional: the branch that moves least, or all of them."""

_NAME, _CYCLES = re.compile(r'op_name="([^"]*)"'), re.compile(r'"estimated_cycles":"(\d+)"')
# What moves nothing, and the second halves of asynchronous pairs, whose first halves count.
_FREE = {"parameter", "get-tuple-element", "tuple", "bitcast", "constant", "after-all", "iota",
         "partition-id", "replica-id", "opt-barrier"}  # fmt: skip
_SLICES = ("dynamic-slice", "slice", "gather")
_UPDATES = ("dynamic-update-slice",)


class Traffic(NamedTuple):
    """What one part of a program costs."""

    bytes: float = 0
    cycles: float = 0
    """Cycles by the compiler's own estimate, where it gives one."""


Parts = dict[str, Traffic]
"""The traffic of each part."""


def program_traffic(text: str, branches: Branches = "all") -> Parts:
    """The traffic of one execution of a program.

    A loop counts as often as it runs, or once where the compiler does not know that.
    """
    program = hlo.read(text)
    return _computation(program, program.entry, branches)


def step_traffic(text: str, branches: Branches = "least") -> Parts:
    """The traffic of one turn of a program's outermost loops.

    With the branches that move least: a decode step that filters nothing and draws in every row.
    """
    program = hlo.read(text)
    totals: Parts = defaultdict(Traffic)
    for one in program[program.entry]:
        if one.op == "while":
            _add(totals, _computation(program, one.body, branches))
    return dict(totals)


def total_bytes(parts: Mapping[str, Traffic]) -> float:
    """The bytes of all parts together."""
    return sum(traffic.bytes for traffic in parts.values())


def _add(totals: Parts, more: Mapping[str, Traffic], times: int = 1) -> None:
    for part, (moved, cycles) in more.items():
        before = totals[part]
        totals[part] = Traffic(before.bytes + times * moved, before.cycles + times * cycles)


def _computation(program: Program, name: str, branches: Branches) -> Parts:
    totals: Parts = defaultdict(Traffic)
    types = {one.name: one.type for one in program[name]}
    for one in program[name]:
        if one.op in ("conditional", "while", "call"):
            called = [_computation(program, inner, branches) for inner in one.called]
            if one.op == "conditional" and branches == "least":
                called = [min(called, key=total_bytes)]
            for parts in called:
                _add(totals, parts, one.trips)
        elif one.op not in _FREE and not one.op.endswith("-done") and not _is_kernel(one):
            found = _CYCLES.search(one.rest)
            traffic = Traffic(_bytes_moved(program, one, types), int(found[1]) if found else 0)
            _add(totals, {_part(one): traffic})
    return dict(totals)


def _is_kernel(one: Instruction) -> bool:
    return one.op == "custom-call" and KERNEL in one.name + one.rest


def _part(one: Instruction) -> str:
    found = _NAME.search(one.rest)
    name = found[1] if found else ""
    return next((part for word, part in PARTS if word in name), OTHER)


def _main_bytes(type_: str) -> int:
    """Bytes of the arrays of a type that are in the device's main memory."""
    return sum(array.bytes for array in hlo.arrays(type_) if not array.on_chip)


def _bytes_moved(program: Program, one: Instruction, types: Mapping[str, str]) -> int:
    operands, out = (
        [_main_bytes(types.get(name, "")) for name in one.operands],
        _main_bytes(one.type),
    )
    if one.op in _SLICES:
        return 2 * out
    if one.op in _UPDATES:
        return 2 * operands[1]
    if one.op in ("copy-start", "async-start", "slice-start"):
        # The type is (copy, source, context) of a copy, and ((source), result, context) of others.
        found = list(hlo.arrays(one.type))
        moved = found[0 if one.op == "copy-start" else min(1, len(found) - 1)]
        return (0 if moved.on_chip else moved.bytes) + min(operands[0], moved.bytes)
    if one.op in ("all-gather-start", "collective-permute-start", "all-to-all-start"):
        return out  # the type is (operand, result, ...)
    if one.op == "fusion":
        return _fused(program, program[one.called[0]], operands, out)
    return out + sum(operands)


def _full_bytes(type_: str) -> int:
    """Bytes of the first array of a type, wherever it is."""
    return next((array.bytes for array in hlo.arrays(type_)), 0)


def _fused(program: Program, body: Sequence[Instruction], operands: Sequence[int], out: int) -> int:
    """A fusion: operands that it only slices, and results that it updates in place, in part."""
    users = _users(body)
    types = {one.name: one.type for one in body}
    total, in_place = 0, 0
    for parameter in (one for one in body if one.op == "parameter"):
        size = operands[int(parameter.operands[0])]
        uses = _uses(parameter.name, users)
        sliced = _sliced_bytes(program, uses)
        if sliced is not None:
            total += min(size, sliced)
        elif uses and all(_only(use, _UPDATES) for use in uses) and size:
            in_place += sum(
                _full_bytes(use.type) - _full_bytes(types[use.operands[1]]) for use, _ in uses
            )
        else:
            total += size
    return total + max(0, out - in_place)


def _users(body: Sequence[Instruction]) -> dict[str, list[tuple[Instruction, int]]]:
    """What each value of a computation is an operand of, and at which place."""
    users: dict[str, list[tuple[Instruction, int]]] = defaultdict(list)
    for one in body:
        for index, operand in enumerate(one.operands):
            users[operand].append((one, index))
    return users


def _sliced_bytes(program: Program, uses: Sequence[tuple[Instruction, int]]) -> int | None:
    """The bytes of the slices that these uses take; None where one of them reads all.

    A fusion may hold others: that of a layer's product holds the slice of the stacked weights.
    """
    total = 0
    for use, place in uses:
        if use.op == "fusion":
            inner = program[use.called[0]]
            name = next(x.name for x in inner if x.op == "parameter" and x.operands == [str(place)])
            found = _sliced_bytes(program, _uses(name, _users(inner)))
        else:
            found = _full_bytes(use.type) if _only((use, place), _SLICES) else None
        if found is None:
            return None
        total += found
    return total if uses else None


def _uses(
    name: str, users: Mapping[str, list[tuple[Instruction, int]]]
) -> list[tuple[Instruction, int]]:
    found: list[tuple[Instruction, int]] = []
    for one, index in users.get(name, ()):
        found += _uses(one.name, users) if one.op == "bitcast" else [(one, index)]
    return found


def _only(use: tuple[Instruction, int], ops: Sequence[str]) -> bool:
    """Whether a use is the first operand of such an operation."""
    return use[0].op in ops and use[1] == 0
