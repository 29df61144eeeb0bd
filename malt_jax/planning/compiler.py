"""What a program costs: from its jaxpr, and from the compiler for the target's own chips.

A transformer's layers are alike, so the memory, operations and communication of a TPU program are a
constant plus a part per layer. A deep model's programs are compiled at two small depths, and the
line through both is followed to the model's depth, which takes minutes in place of hours. Models of
few layers, and all programs with `whole`, are compiled as they are. So are programs that scan their
layers, and XLA's for CPUs and GPUs, whose temporaries do not grow linearly with their number.
"""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import jax
from jax.extend.core import jaxprs_in_params
from jax.sharding import AbstractMesh, Mesh

from malt_jax.models.sharding import EXPERT, on_mesh
from malt_jax.models.spec import ModelSpec
from malt_jax.planning import gpus
from malt_jax.planning.abstract_programs import AbstractProgram, device_bytes
from malt_jax.planning.hlo import collectives
from malt_jax.planning.traffic import program_traffic, step_traffic
from malt_jax.planning.traffic import total_bytes as traffic_bytes

DEPTHS = (2, 3)
"""Layers compiled. Not one: a layer that is both first and last is unlike those of a deep model."""

Figures = dict[str, Any]
"""Numbers by name; `collectives` holds {kind: {count, bytes}}."""

CPU_CODE = 3_000
"""Bytes of memory for each instruction of a program that XLA compiled for a CPU, of which it says
nothing itself: between 1.8 and 3.3 KB were found resident in programs of 16,000 to 160,000."""

_UNITS = {"B": 0, "K": 10, "M": 20, "G": 30, "T": 40}
_SIZE = r"([\d.]+)([BKMGT])"
_USED = re.compile(rf"Used {_SIZE} of [\d.]+[BKMGT] hbm")
_TEMPORARIES = re.compile(rf"required for HLO temporaries \({_SIZE}\) exceeds")


def measure_all(
    programs: Sequence[AbstractProgram],
    spec: ModelSpec,
    mesh: Mesh | AbstractMesh,
    chips: int,
    *,
    whole: bool = False,
    on_program: Callable[[str], None] | None = None,
) -> list[Figures]:
    """Measures each program, as many at a time as there are cores."""
    # libtpu 0.0.42 dies of a segmentation fault where two training steps of a mixture of experts
    # are compiled side by side; one after the other they compile.
    workers = 1 if spec.mixture and _platform(mesh) == "tpu" else os.cpu_count()

    def one(program: AbstractProgram) -> Figures:
        figures = measure(program, spec, mesh, chips, whole=whole)
        if on_program:
            on_program(program.name)
        return figures

    lowering = gpus.known_to_jax() if _platform(mesh) == "gpu" else nullcontext()
    with lowering, ThreadPoolExecutor(workers) as pool:
        return list(pool.map(one, programs))


def measure(
    program: AbstractProgram,
    spec: ModelSpec,
    mesh: Mesh | AbstractMesh,
    chips: int,
    *,
    whole: bool = False,
) -> Figures:
    """Figures of one program on one chip, with all of the model's layers.

    `flops` are two per multiply-add of the matrix products; loops count as often as they run, the
    decode loop once. `bytes_moved` and `optimal_seconds` are the compiler's, which counts every
    loop once; of programs with a kernel, of those that scan their layers and of a GPU's programs
    `bytes_moved` is read from the text (and the kernel's work lists), of a decode program for one
    step, and of those that scan nobody estimates `optimal_seconds`. On an abstract mesh
    nothing is compiled: only arguments and operations are known.
    """
    whole = whole or program.scanned or _platform(mesh) in ("cpu", "gpu")
    compiled = [spec.num_layers] if whole else depths(spec)
    started = time.perf_counter()
    found = [_at(program, depth, mesh, chips) for depth in compiled]
    refused = any([one.pop("refused", False) for one in found])
    # A program that did not fit reports fewer figures: only what all depths have can be extended.
    known = [name for name in found[0] if all(name in one for one in found)]
    found = [{name: one[name] for name in known} for one in found]
    figures = extended(found, compiled, spec.num_layers) if len(found) > 1 else found[0]
    return {
        **figures,
        **({"refused": True} if refused else {}),
        "resident": program.resident,
        "compiled_at_layers": compiled if isinstance(mesh, Mesh) else [],
        "compile_seconds": round(time.perf_counter() - started, 1),
    }


def depths(spec: ModelSpec) -> list[int]:
    """The depths that stand for all layers: two, or the model's own if it is not deeper."""
    # Whole periods of the window pattern, so that each depth has the model's mix of layers.
    small = [depth * _period(spec) for depth in DEPTHS]
    return small if spec.num_layers > small[-1] else [spec.num_layers]


def _platform(mesh: Mesh | AbstractMesh) -> str | None:
    """The platform that is compiled for; None on an abstract mesh."""
    return mesh.devices.flat[0].platform if isinstance(mesh, Mesh) else None


def _period(spec: ModelSpec) -> int:
    """After how many layers the pattern of windows and of layers without rope repeats."""
    kinds = [(spec.window(layer), spec.rotated(layer)) for layer in range(spec.num_layers)]
    return next((p for p in range(1, spec.num_layers) if kinds[p:] == kinds[:-p]), spec.num_layers)


def _at(program: AbstractProgram, depth: int, mesh: Mesh | AbstractMesh, chips: int) -> Figures:
    function, args = program.build(depth)
    with on_mesh(mesh):
        traced = jax.jit(function, donate_argnums=program.donate).trace(*args)
        figures: Figures = {
            # The jaxpr is the program of all chips, from before it is partitioned.
            "flops": product_flops(traced.jaxpr.jaxpr) / chips,
            "arguments": device_bytes(args),
        }
        if not isinstance(mesh, Mesh):
            return figures
        try:
            compiled = traced.lower().compile(compiler_options=compile_options(program, mesh))
        except jax.errors.JaxRuntimeError as error:
            # More memory than a chip has: the compiler's message says how much it would take, where
            # temporaries alone are too much only these.
            if used := _USED.search(str(error)):
                temporaries = max(0, _bytes(used) - figures["arguments"])
            elif used := _TEMPORARIES.search(str(error)):
                temporaries = _bytes(used)
            else:
                raise
            return figures | {"temporaries": temporaries, "refused": True}
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis() or {}
    text = _text(compiled)
    code = memory.generated_code_size_in_bytes
    if _platform(mesh) == "cpu" and text is not None:
        code = CPU_CODE * text.count(" = ")
    figures |= {
        "arguments": memory.argument_size_in_bytes,
        # Outputs in the buffers of donated arguments take no memory of their own.
        "outputs": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "code": code,
        "bytes_moved": cost.get("bytes accessed"),
        "optimal_seconds": cost.get("optimal_seconds"),
        "collectives": None if text is None else collectives(text),
    }
    if program.scanned:
        # The compiler counts one layer.
        figures |= {"bytes_moved": None, "optimal_seconds": None}
    if text is not None and (program.scanned or _platform(mesh) == "gpu"):
        decode = program.name == "decode"
        figures["bytes_moved"] = traffic_bytes((step_traffic if decode else program_traffic)(text))
    if program.kernel_bytes:
        # The compiler knows neither what a kernel reads nor how long it takes.
        figures |= {"bytes_moved": None, "optimal_seconds": None}
        if text is not None:
            step = step_traffic(text)
            figures["bytes_moved"] = traffic_bytes(step) + program.kernel_bytes(depth)
    return {name: value for name, value in figures.items() if value is not None}


def _bytes(size: re.Match[str]) -> int:
    """A size in a compiler's message, such as 20.50G."""
    return round(float(size[1]) * 2 ** _UNITS[size[2]])


def compile_options(program: AbstractProgram, mesh: Mesh) -> dict[str, str | bool] | None:
    """The run's own compiler options, and those that compiling without a GPU needs."""
    platform = mesh.devices.flat[0].platform
    own = program.options.get(platform, {})
    return {**own, **gpus.COMPILER_OPTIONS} if platform == "gpu" else own or None


def _text(compiled: Any) -> str | None:
    """The compiled program as text; None where libtpu cannot print a program that it compiled."""
    try:
        return compiled.as_text()
    except jax.errors.JaxRuntimeError:
        return None


def extended(found: Sequence[Any], depths: Sequence[int], depth: int) -> Any:
    """Extends figures at two depths linearly to `depth`; dictionaries by key, never below zero."""
    if any(isinstance(one, dict) for one in found):
        first, second = (one or {} for one in found)
        # A kind of collective that only one depth has counts as zero at the other.
        names = dict.fromkeys([*first, *second])
        return {n: extended([first.get(n, 0), second.get(n, 0)], depths, depth) for n in names}
    (first, second), (a, b) = found, depths
    value = max(first + (second - first) * (depth - a) / (b - a), 0)
    return round(value) if isinstance(first, int) and isinstance(second, int) else value


def product_flops(jaxpr: Any, shards: float = 1.0) -> float:
    """Operations of all matrix products; of a conditional's branches the most expensive counts.

    `shards`: how many times the experts' products are done, which are written for one device.
    """
    total = 0.0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name == "shard_map":
            # Devices that split the experts have the same rows, and each has its share of them.
            mesh = equation.params["mesh"]
            shards = mesh.size / mesh.shape.get(EXPERT, 1)
        inner = [product_flops(one, shards) for one in jaxprs_in_params(equation.params)]
        if name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            depth = math.prod(shape[axis] for axis in contracted)
            total += 2.0 * math.prod(equation.outvars[0].aval.shape) * depth
        elif name == "ragged_dot_general":
            rows, experts = (x.aval.shape for x in equation.invars[:2])
            total += 2.0 * shards * rows[0] * experts[1] * experts[2]
        elif name == "scan":
            total += equation.params["length"] * sum(inner)
        elif name == "cond":
            total += max(inner, default=0.0)
        else:
            # Loops without a known length (`while`) come here and count once.
            total += sum(inner)
    return total


def seconds(figures: Figures, chip: Any) -> float | None:
    """A lower bound of one execution's seconds; None where no rate is known.

    The largest of the compiler's own estimate and the roofline (Williams et al., 2009): operations,
    memory traffic and communication, each at the chip's published rate.
    """
    # The largest and not the sum, since computing, memory and links may all work at the same time.
    bounds = [figures.get("optimal_seconds") or 0.0]
    if chip.flops:
        bounds.append(figures["flops"] / chip.flops)
    if chip.bandwidth:
        # Without a compiler's count, the arguments at least are read once.
        bounds.append(figures.get("bytes_moved", figures["arguments"]) / chip.bandwidth)
    if chip.links:
        delivered = sum(total["bytes"] for total in figures.get("collectives", {}).values())
        bounds.append(delivered / chip.links)
    return max(bounds) or None


def total_bytes(figures: Figures) -> int:
    """Bytes that a chip holds while the program runs."""
    parts = ("resident", "arguments", "outputs", "temporaries", "code")
    return sum(figures.get(name, 0) for name in parts)
