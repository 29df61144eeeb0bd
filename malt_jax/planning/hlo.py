"""Reads the communication between chips from the text of a compiled program."""

from __future__ import annotations

import math
import re

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
# In bits, because int4 has half a byte; a predicate takes a whole byte.
BITS = {"pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "bf16": 16,
        "f16": 16, "s32": 32, "u32": 32, "f32": 32, "s64": 64, "u64": 64, "f64": 64}  # fmt: skip

# The text is a list of computations: a header that ends in `{`, then one instruction per line.
# Loops, branches and calls name the computations that they run.
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
# Of an asynchronous pair only the start matches, so the pair counts once.
_COLLECTIVE = re.compile(rf"= (.*?) ({'|'.join(KINDS)})(-start)?\(")
_CALLED = re.compile(r"(?:body|condition|to_apply|calls)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")


def collectives(text: str) -> dict[str, dict[str, int]]:
    """{kind: {count, bytes}} of one execution; bytes are those that arrive at a chip.

    A loop's collectives count as often as it runs, or once where the compiler does not know that.
    """
    # 1. Collect the lines of each computation.
    # 2. From the entry, follow what each line calls and multiply by the trips of loops on the way.
    lines: dict[str, list[str]] = {}
    entry = name = ""
    for line in text.splitlines():
        if found := _COMPUTATION.match(line):
            name = found[1]
            lines[name] = []
            entry = name if line.startswith("ENTRY") else entry
        elif name:
            lines[name].append(line)
    totals: dict[str, dict[str, int]] = {}
    _count(entry, 1, lines, totals)
    return totals


def _count(
    name: str, times: int, lines: dict[str, list[str]], totals: dict[str, dict[str, int]]
) -> None:
    for line in lines.get(name, ()):
        if found := _COLLECTIVE.search(line):
            total = totals.setdefault(found[2], {"count": 0, "bytes": 0})
            sizes = [_bytes(*array) for array in _ARRAY.findall(found[1])]
            # An asynchronous start returns (operands, results): the second half are its results.
            sizes = sizes[len(sizes) // 2 :] if found[3] and len(sizes) > 1 else sizes
            total["count"] += times
            total["bytes"] += times * sum(sizes)
        trips = _TRIPS.search(line) if " while(" in line else None
        for called in _called(line):
            _count(called, times * (int(trips[1]) if trips else 1), lines, totals)


def _called(line: str) -> list[str]:
    # Every branch counts, though one of them runs: an upper bound.
    names = _CALLED.findall(line)
    for group in _BRANCHES.findall(line):
        names += [part.strip().lstrip("%") for part in group.split(",")]
    return names


def _bytes(kind: str, shape: str) -> int:
    if kind not in BITS:
        return 0
    return math.prod(int(size) for size in shape.split(",") if size) * BITS[kind] // 8
