"""The plan of a run: work, programs, fit, hours; plain data, from the config alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh

from malt_jax.config import Config
from malt_jax.models.mesh import AXES, Layout, choose_layout, make_mesh, slice_count
from malt_jax.models.spec import ModelSpec
from malt_jax.models.weights import abstract_params
from malt_jax.planning.chips import Target
from malt_jax.planning.compiler import measure, seconds, total_bytes
from malt_jax.planning.programs import (
    Program,
    Sizes,
    choose_sizes,
    device_bytes,
    micro_batches,
    run_programs,
    weight_bytes,
)
from malt_jax.planning.work import Assumptions, Work, count_work, steps

OnProgram = Callable[[str], None]


def make_plan(
    config: Config,
    spec: ModelSpec,
    target: Target,
    *,
    whole: bool = False,
    assume: Assumptions | None = None,
    on_program: OnProgram | None = None,
) -> dict[str, Any]:
    """Everything `malt plan` prints. Compiles each program for the target where a compiler is.

    `whole`: at the model's full depth (see `compiler`). Bytes are those of one chip.
    """
    assume = assume or Assumptions()
    work = count_work(config, assume)
    chip, itemsize = target.chip, 4 if target.chip.platform == "cpu" else 2
    _, params = abstract_params(spec, "float32", stacked=True)
    parameters = sum(math.prod(x.shape) for x in jax.tree.leaves(params))
    slices = slice_count(target.devices) if target.devices else 1
    layout = choose_layout(
        config.mesh, target.count, slices, spec, itemsize * parameters, chip.memory
    )
    mesh = _mesh(layout, target)
    dtype = "float32" if itemsize == 4 else "bfloat16"
    weights = weight_bytes(config, spec, dtype, mesh)
    sizes = choose_sizes(config, spec, work, target, mesh, weights)
    programs = []
    for program in run_programs(config, spec, sizes, target, mesh):
        if on_program:
            on_program(program.name)
        figures = measure(program, spec.num_layers, mesh, target.count, whole=whole)
        if not target.devices:
            figures["temporaries"] = _temporaries(program, spec, sizes, config)
        programs.append(_judged(program, figures, target, weights))
    stages = _stages(config, work, sizes, programs, target)
    return {
        "model": {
            "path": config.model.path,
            "family": spec.family,
            "layers": spec.num_layers,
            "parameters": parameters,
            "bytes_per_chip": weights,
        },
        "target": {"name": target.name, "chips": target.count, "chip_bytes": chip.memory},
        "compiled": target.devices is not None,
        "mesh": {**dict(zip(AXES, layout.shape, strict=True)), "why": layout.why},
        "assumptions": vars(assume),
        "work": {
            "train_questions": work.train_questions,
            "eval_questions": work.eval_questions,
            "rounds": config.rounds,
            "tree_calls": work.calls,
            "tree_tokens": work.tokens,
            "eval_calls": work.eval_calls,
            "eval_tokens": work.eval_tokens,
            "roles": [vars(role) for role in work.roles],
        },
        "programs": programs,
        "stages": stages,
        "fits": all(program["fits"] is not False for program in programs),
    }


def _mesh(layout: Layout, target: Target) -> Mesh | AbstractMesh:
    if target.devices is None:
        return AbstractMesh(layout.shape, AXES, axis_types=(AxisType.Auto,) * len(AXES))
    return make_mesh(layout, target.devices)


def _judged(
    program: Program, figures: dict[str, Any], target: Target, weights: int
) -> dict[str, Any]:
    """A program's figures with whether it fits, and the nearest setting that would."""
    need, have = total_bytes(figures), target.chip.memory
    fits = None if have is None else need <= have
    instead = None
    if fits is False:
        room, variable = have - weights, max(need - weights, 1)
        smaller = int(program.size * 0.95 * room / variable) if room > 0 else 0
        more = 1 << math.ceil(math.log2(max(2, weights / (0.5 * have))))
        instead = (
            f"{program.field}: {smaller} (estimated from {program.size})"
            if smaller > 0
            else f"mesh.fsdp: {more} times as many parts, or mesh.tensor likewise"
        )
    return {
        "name": program.name,
        "shape": program.shape,
        **figures,
        "total_bytes": need,
        "seconds": seconds(figures, target.chip),
        "fits": fits,
        "instead": instead,
    }


def _stages(
    config: Config, work: Work, sizes: Sizes, programs: list[dict[str, Any]], target: Target
) -> list[dict[str, Any]]:
    """Hours of each stage: executions of each program by its seconds; None without a rate."""
    time = {program["name"]: program["seconds"] for program in programs}
    if any(value is None for value in time.values()):
        return []
    lane, batch = sizes.lanes.tokens, sizes.lanes.counts[-1]
    rows = sizes.shapes.slots * sizes.shapes.width

    def sampling(calls: int, mean: float, longest: int, prompts: int, tokens: int, blocks: int):
        # All rows busy until the last completion begins; then the longest one runs to its end.
        decode = calls * mean / rows + blocks * longest
        pieces = prompts * math.ceil(tokens / lane)
        return decode * time["decode"] + pieces / batch * time[f"prefill {batch * lane}"]

    blocks = math.ceil(work.train_questions / config.search.block)
    search = config.rounds * sum(
        sampling(r.nodes, r.completion, r.longest, r.prefixes, r.prompt, blocks) for r in work.roles
    )
    last = work.roles[-1]
    eval_blocks = math.ceil(work.eval_questions / config.eval.block) * 3 * len(work.roles)
    evaluation = sampling(
        work.eval_calls,
        work.eval_tokens / max(work.eval_calls, 1),
        last.longest,
        work.eval_calls,
        last.prompt,
        eval_blocks,
    )
    sft_step = _step_seconds(sizes.sft, time["sft step"])
    dpo_step = _step_seconds(sizes.dpo, time["dpo step"])
    reference = _step_seconds(sizes.dpo, time["reference"])
    sft, dpo = config.train.sft, config.train.dpo
    training = config.rounds * (
        sft_step * (sum(steps(r.sft, sft) for r in work.roles) + steps(work.star, sft))
        + dpo_step * sum(steps(r.pairs, dpo) for r in work.roles)
        + reference * sum(math.ceil(r.pairs / dpo.batch_size) for r in work.roles)
    )
    return [
        {
            "name": name,
            "hours": value / 3600,
            "chip_hours": value / 3600 * target.count,
        }
        for name, value in (("search", search), ("training", training), ("evaluation", evaluation))
    ]


def _step_seconds(plan: Any, largest: float) -> float:
    """Seconds of a typical step: its micro-batches in proportion to the largest one's tokens."""
    tokens = list(micro_batches(plan))
    return largest * sum(tokens) / max(tokens)


def _temporaries(program: Program, spec: ModelSpec, sizes: Sizes, config: Config) -> int:
    """Temporaries by formula, where there is no compiler for the target.

    Sampling: the draw's copies of the logits. Training: what `remat` keeps of every layer for the
    backward pass, one layer's attention scores in float32, and the logits of one chunk. One device.
    """
    from malt_jax.sampling.memory import LOGIT_COPIES

    element = 2
    if program.field == "sampler.slots":
        if program.name == "decode":
            return LOGIT_COPIES * 4 * spec.vocab * sizes.shapes.slots * sizes.shapes.width
        width = 2 * spec.d_mlp + 4 * spec.d_model
        return element * width * sizes.lanes.tokens * sizes.lanes.counts[-1]
    plan = sizes.sft if program.name == "sft step" else sizes.dpo
    shape = max((m.shape for s in plan.steps for m in s), key=lambda s: s.rows * s.time)
    tokens = shape.rows * shape.time
    heads, kv = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    dots = heads + 2 * kv + 2 * spec.d_model + 2 * spec.d_mlp
    remat = config.train.sft.loop.remat
    kept = {"full": spec.d_model, "none": 3 * dots}.get(remat, dots + spec.d_model)
    scores = 3 * 4 * shape.rows * spec.heads * shape.time**2
    layers = 1 if program.name == "reference" else spec.num_layers
    return element * tokens * kept * layers + scores + 3 * (512 << 20)


__all__ = ["device_bytes", "make_plan"]
