"""What a program costs: from its jaxpr, and from the compiler for the target's own chips.

A transformer's layers are alike, so a program's memory, operations and communication are a
constant plus a part for each layer. It is compiled at two small depths and extended linearly to the
model's, which keeps minutes from becoming hours for deep models; a model that is not deeper is
compiled as it is, and so is every program with `whole`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh

from malt_jax.planning.hlo import collectives
from malt_jax.planning.programs import Program, device_bytes

DEPTHS = (1, 2)

Figures = dict[str, Any]
"""Numbers by name; `collectives` holds {kind: {count, bytes}}."""


def measure(
    program: Program, depth: int, mesh: Mesh | AbstractMesh, chips: int, *, whole: bool = False
) -> Figures:
    """The figures of one program on one chip, for a model of `depth` layers.

    `flops`: multiply-adds x 2 of matrix products, loops counted as often as they run (the decode
    loop: once); `bytes_moved` and `optimal_seconds` are the compiler's, which counts a loop once.
    On an abstract mesh nothing is compiled and only arguments and operations are known.
    """
    depths = (depth,) if whole or depth <= DEPTHS[-1] else DEPTHS
    started = time.perf_counter()
    found = [_at(program, d, mesh, chips) for d in depths]
    figures = found[0] if len(found) == 1 else _extended(*found, depths, depth)
    return {
        **figures,
        "compiled_at_layers": list(depths) if isinstance(mesh, Mesh) else [],
        "compile_seconds": round(time.perf_counter() - started, 1),
    }


def _at(program: Program, depth: int, mesh: Mesh | AbstractMesh, chips: int) -> Figures:
    function, args = program.build(depth)
    concrete = isinstance(mesh, Mesh)
    with jax.set_mesh(mesh) if concrete else nullcontext():
        traced = jax.jit(function, donate_argnums=program.donate).trace(*args)
        figures: Figures = {
            "flops": product_flops(traced.jaxpr.jaxpr) / chips,
            "arguments": device_bytes(args),
        }
        if not concrete:
            return figures
        compiled = traced.lower().compile()
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis() or {}
    figures |= {
        "arguments": memory.argument_size_in_bytes,
        "outputs": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "code": memory.generated_code_size_in_bytes,
        "bytes_moved": cost.get("bytes accessed"),
        "optimal_seconds": cost.get("optimal_seconds"),
        "collectives": collectives(compiled.as_text()),
    }
    return {name: value for name, value in figures.items() if value is not None}


def _extended(first: Any, second: Any, depths: tuple[int, int], depth: int) -> Any:
    """The line through two figures, at `depth`; dictionaries by key, never below zero."""
    if isinstance(first, dict) or isinstance(second, dict):
        first, second = first or {}, second or {}
        names = dict.fromkeys([*first, *second])
        return {n: _extended(first.get(n, 0), second.get(n, 0), depths, depth) for n in names}
    a, b = depths
    value = first + (second - first) * (depth - a) / (b - a)
    value = max(value, 0)
    whole = isinstance(first, int) and isinstance(second, int)
    return round(value) if whole else value


def product_flops(jaxpr: Any) -> float:
    """Operations of all matrix products: scans by their length, branches by the dearest."""
    total = 0.0
    for equation in jaxpr.eqns:
        inner = list(map(product_flops, jax.core.jaxprs_in_params(equation.params)))
        name = equation.primitive.name
        if name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            depth = math.prod(shape[axis] for axis in contracted)
            total += 2.0 * math.prod(equation.outvars[0].aval.shape) * depth
        elif name == "scan":
            total += equation.params["length"] * sum(inner)
        elif name == "cond":
            total += max(inner, default=0.0)
        else:
            total += sum(inner)
    return total


def seconds(figures: Figures, chip: Any) -> float | None:
    """A lower bound of one execution: the compiler's, or what arithmetic and memory allow."""
    bounds = [figures.get("optimal_seconds") or 0.0]
    if chip.flops:
        bounds.append(figures["flops"] / chip.flops)
    if chip.bandwidth:
        bounds.append(figures.get("bytes_moved", figures["arguments"]) / chip.bandwidth)
    best = max(bounds)
    return best or None


def total_bytes(figures: Figures) -> int:
    """What a chip must hold while the program runs."""
    return sum(figures.get(name, 0) for name in ("arguments", "outputs", "temporaries", "code"))


Measure = Callable[[Program], Figures]
measured_whole = partial(measure, whole=True)
