"""`malt bench roofline`: what a decode step moves on a TPU, against the least that it could move.

Nothing runs: the decode program is compiled for the topology, with XLA's attention and with the
kernel, and its bytes are read from the compiled program, those of the kernel from its work lists.
The floor is what a step cannot do without: the weights and the adapter once, the keys and values
that some row may see once, and the logits written and read once.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import jax
from jax.sharding import Mesh

from malt_jax.config.run import Config
from malt_jax.models.sharding import mesh_parts
from malt_jax.models.spec import ModelSpec
from malt_jax.planning.abstract_programs import AbstractProgram, device_bytes, run_programs
from malt_jax.planning.chips import Target
from malt_jax.planning.compiler import compile_options, depths, extended
from malt_jax.planning.formula import active_weights
from malt_jax.planning.plan import PlannedRun, lay_out
from malt_jax.planning.traffic import Traffic, step_traffic
from malt_jax.planning.typical_rows import valid_tokens
from malt_jax.sampling import memory
from malt_jax.sampling.memory import CacheShape

ROWS, PREFIX_TOKENS, NEW_TOKENS = 504, 1024, 512
"""Rows per chip, unless `sampler.rows` says otherwise, and the capacities of the caches."""

CLOCK = {"v5e": 1.5e9, "v5p": 1.75e9, "v6e": 1.75e9}
"""Cycles per second: the published rate over the multiply-adds that the matrix units do in one."""


def run(config: Config, spec: ModelSpec, target: Target) -> dict[str, Any]:
    """The decode step with each attention; bytes and seconds are those of one chip."""
    programs = [_Case(config, spec, target, attention) for attention in ("xla", "pallas")]
    compiled = [(case, depth) for case in programs for depth in case.depths]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = list(pool.map(lambda one: one[0].traffic(one[1]), compiled))
    results = []
    for case in programs:
        by_depth = [x for (of, _), x in zip(compiled, found, strict=True) if of is case]
        results.append(case.result(by_depth))
    first = programs[0]
    return {
        "bench": "roofline",
        "topology": target.name,
        "model": config.model.path,
        "mesh": {name: size for name, size in first.planned.mesh.shape.items() if size > 1},
        "rows": first.shape.rows,
        "prompts": first.shape.entries,
        "capacities": [first.shape.prefix_tokens, first.shape.new_tokens],
        "valid_tokens": sum(valid_tokens(spec, first.shape)) // spec.num_layers,
        "floor": first.floor(),
        "programs": results,
    }


class _Case:
    """The decode program with one implementation of attention."""

    def __init__(self, config: Config, spec: ModelSpec, target: Target, attention: Any):
        config = replace(config, sampler=replace(config.sampler, attention=attention))
        self.spec, self.chip, self.attention = spec, target.chip, attention
        self.planned: PlannedRun = lay_out(config, spec, target)
        mesh, sizes = self.planned.mesh, self.planned.sizes
        shards = mesh_parts(mesh, "batch")
        rows = -(-config.sampler.rows // shards) or ROWS
        siblings = sizes.shapes.siblings
        entries = memory.entries_for(rows, siblings)
        self.shape = CacheShape(rows, entries, siblings, PREFIX_TOKENS, NEW_TOKENS)
        """Of one shard."""
        whole = replace(self.shape, rows=rows * shards, entries=entries * shards)
        programs = run_programs(
            config, spec, replace(sizes, shapes=whole), target.chip.platform, mesh
        )
        self.program: AbstractProgram = next(p for p in programs if p.name == "decode")
        self.depths = depths(spec)
        self.cache_dtype = memory.cache_dtype(config.sampler, sizes.dtype, target.chip.platform)
        self.kv_shards = memory.kv_shards(spec, mesh)

    def traffic(self, depth: int) -> dict[str, Traffic]:
        function, args = self.program.build(depth)
        mesh = self.planned.mesh
        assert isinstance(mesh, Mesh), "the target has devices"
        with jax.set_mesh(mesh):
            lowered = jax.jit(function, donate_argnums=self.program.donate).lower(*args)
            options = compile_options(self.program, mesh)
            text = lowered.compile(compiler_options=options).as_text()
        assert text is not None
        return step_traffic(text)

    def floor(self) -> dict[str, int]:
        """The fewest bytes of each kind."""
        weights = self.program.build(self.spec.num_layers)[1][0]
        # Of an embedding table that is not the head as well, a step reads one row per token.
        table = 0 if self.spec.tied else device_bytes(weights.params["embed"])
        token = memory.token_bytes(self.spec, self.cache_dtype)
        valid = sum(valid_tokens(self.spec, self.shape))
        vocab = self.spec.vocab // mesh_parts(self.planned.mesh, "vocab")
        return {
            "weights": device_bytes(weights.params) - table,
            "LoRA": device_bytes(weights.adapter),
            "keys and values": valid * token // self.spec.num_layers // self.kv_shards,
            "logits": 2 * 4 * self.shape.rows * vocab,
        }

    def result(self, by_depth: list[dict[str, Traffic]]) -> dict[str, Any]:
        layers = self.spec.num_layers
        found = by_depth[0]
        if len(by_depth) > 1:
            as_figures = [
                {part: traffic._asdict() for part, traffic in one.items()} for one in by_depth
            ]
            line = extended(as_figures, self.depths, layers)
            found = {part: Traffic(**figures) for part, figures in line.items()}
        if self.attention == "pallas":
            assert self.program.kernel_bytes is not None
            found = found | {"kernel": Traffic(self.program.kernel_bytes(layers))}
        parts = {part: self._part(part, traffic) for part, traffic in found.items()}
        total = {name: sum(p[name] for p in parts.values()) for name in next(iter(parts.values()))}
        floor = sum(self.floor().values())
        return {
            "name": "decode",
            "attention": self.attention,
            **total,
            "floor_bytes": floor,
            "ratio": total["bytes"] / floor,
            "parts": parts,
        }

    def _part(self, part: str, traffic: Traffic) -> dict[str, float]:
        """Bytes; seconds at the published rates; and by the compiler's schedule, if that is more.

        The compiler has no estimate for the kernel, whose time is that of its bytes.
        """
        bandwidth, flops = self.chip.bandwidth or float("inf"), self.chip.flops or float("inf")
        seconds = max(traffic.bytes / bandwidth, self._flops(part) / flops)
        scheduled = traffic.cycles / CLOCK[self.chip.name]
        return {
            "bytes": traffic.bytes,
            "seconds": seconds,
            "scheduled_seconds": scheduled or seconds,
        }

    def _flops(self, part: str) -> float:
        """Operations of a part's products, where they may take longer than its bytes."""
        split = mesh_parts(self.planned.mesh, "mlp")
        if part == "weights":
            return 2 * self.shape.rows * self.spec.num_layers * active_weights(self.spec) / split
        if part == "head and draw":
            return 2 * self.shape.rows * self.spec.d_model * self.spec.vocab / split
        return 0


def tables(result: dict[str, Any]) -> Iterator[str]:
    """The result in lines of text."""
    floor = sum(result["floor"].values())
    parts = ", ".join(f"{name} {value / 1e9:.2f}" for name, value in result["floor"].items())
    yield (
        f"{result['model']} on one chip of {result['topology']}: {result['rows']} rows over "
        f"{result['prompts']} prompts; nothing ran"
    )
    yield f"floor of a decode step: {floor / 1e9:.2f} GB ({parts})"
    for program in result["programs"]:
        yield (
            f"{program['attention']}: {program['bytes'] / 1e9:.2f} GB, "
            f"{program['ratio']:.2f} times the floor; {1e3 * program['seconds']:.1f} ms at the "
            f"published rates, {1e3 * program['scheduled_seconds']:.1f} ms by its schedule"
        )
        for name, part in sorted(program["parts"].items(), key=lambda x: -x[1]["bytes"]):
            yield (
                f"  {name:<14} {part['bytes'] / 1e9:7.2f} GB {1e3 * part['seconds']:7.2f} ms "
                f"{1e3 * part['scheduled_seconds']:7.2f} ms"
            )
