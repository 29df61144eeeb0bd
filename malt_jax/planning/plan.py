"""The plan of a run as plain data: its work, its programs, whether they fit, and its hours."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh

from malt_jax.config.model import ModelConfig
from malt_jax.config.run import Config
from malt_jax.errors import UserError
from malt_jax.models.mesh import Layout, choose_layout, make_mesh, slice_count
from malt_jax.models.spec import ModelSpec
from malt_jax.models.weights import weight_bytes
from malt_jax.planning import formula, nearest
from malt_jax.planning.abstract_programs import (
    AbstractProgram,
    abstract_structure,
    device_bytes,
    kernel_copy_bytes,
    parameters_on_mesh,
    run_programs,
)
from malt_jax.planning.bases import parts_of, residency
from malt_jax.planning.chips import Target
from malt_jax.planning.compiler import Figures, measure_all, seconds, total_bytes
from malt_jax.planning.hours import stages
from malt_jax.planning.sizes import Sizes, choose_sizes, model_dtype, search_programs
from malt_jax.planning.training_steps import for_largest
from malt_jax.planning.work import ASSUMED, Work, count_work
from malt_jax.progress import counted


@dataclass(frozen=True)
class PlannedRun:
    """A config laid out on a target: its mesh, its sizes and its programs."""

    config: Config
    spec: ModelSpec
    target: Target
    work: Work
    layout: Layout
    mesh: Mesh | AbstractMesh
    weights: int
    """Bytes of the parameters on one device."""
    sizes: Sizes
    programs: list[AbstractProgram]
    roles: tuple[str, ...] = ()
    beside: int = 0


def lay_out(
    config: Config,
    spec: ModelSpec,
    target: Target,
    roles: tuple[str, ...] = (),
    beside: int = 0,
) -> PlannedRun:
    """Lays a run out on a target; raises UserError if its mesh is none of the target's.

    `roles`: those whose work the model does, by default all; `beside`: bytes of other models on
    each device (see `bases.Part`).
    """
    # In a run's own order, since each step decides the next: the work, the mesh that the weights
    # need, the caches that fit beside the weights, and the programs of these shapes.
    work = count_work(config)
    work = work.of_roles(roles) if roles else work
    platform = target.chip.platform
    dtype = model_dtype(config, platform)
    slices = slice_count(target.devices) if target.devices else target.slices
    # Before any split: the layout finds out over how many devices.
    size = weight_bytes(spec, dtype, config.model.quantize)
    layout = choose_layout(config.mesh, target.count, slices, spec, size, target.chip.memory)
    if target.devices is None:
        auto = (AxisType.Auto,) * len(layout.shape)
        names = tuple(layout.sizes)
        mesh: Mesh | AbstractMesh = AbstractMesh(layout.shape, names, axis_types=auto)
    else:
        mesh = make_mesh(layout, target.devices)
    weights = device_bytes(parameters_on_mesh(config, spec, dtype, mesh, spec.stacks_layers)[1])
    held = weights + beside
    if config.sampler.weights == "int8":  # a second, rounded copy
        held += kernel_copy_bytes(
            parameters_on_mesh(config, spec, dtype, mesh, spec.stacks_layers, "kernels")[1]
        )
    sizes = choose_sizes(config, spec, work, target, mesh, held)
    config = for_largest(config, sizes.fields, work)
    programs = run_programs(config, spec, sizes, platform, mesh)
    programs = [replace(one, resident=one.resident + beside) for one in programs]
    return PlannedRun(
        config, spec, target, work, layout, mesh, weights, sizes, programs, roles, beside
    )


def count_parameters(spec: ModelSpec) -> int:
    # Stacked, because one layer is traced in place of all; the number is the same.
    _, params = abstract_structure(spec, "float32", stacked=True)
    return sum(math.prod(x.shape) for x in jax.tree.leaves(params))


def plan_bases(
    config: Config,
    specs: Mapping[ModelConfig, ModelSpec],
    target: Target,
    *,
    whole: bool = False,
    on_program: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """The plan of a run, by `plan_run`; `specs`: of all its base models.

    With several, it is that of the run's own model and has one of each other model in `others`, and
    says in `bases` how they share the device.
    """
    parts = parts_of(config, specs, target)
    first, *others = [
        plan_run(part.config, part.spec, target, whole=whole, on_program=on_program,
                 roles=part.roles if len(parts) > 1 else (), beside=part.beside)
        for part in parts
    ]  # fmt: skip
    if not others:
        return first
    shared = residency(config, parts, target, first["work"]["train_questions"])
    fits = all(plan["fits"] for plan in (first, *others))
    return {**first, "bases": shared, "others": others, "fits": fits}


def plan_run(
    config: Config,
    spec: ModelSpec,
    target: Target,
    *,
    whole: bool = False,
    on_program: Callable[[str], None] | None = None,
    roles: tuple[str, ...] = (),
    beside: int = 0,
) -> dict[str, Any]:
    """Everything that `malt plan` prints; bytes are those of one device.

    Each program is compiled for the target where a compiler for it is at hand, at the model's full
    depth if `whole` (see `compiler`). Without one, `formula` estimates what it needs.
    """
    run = lay_out(config, spec, target, roles, beside)
    programs = []
    for program, figures in zip(
        run.programs, measured(run, run.programs, whole, on_program), strict=True
    ):
        # None means that the memory is unknown, which is no reason to look for other settings.
        instead = _instead(run, program, whole) if figures["fits"] is False else None
        facts = {"name": program.name, "shape": program.shape, **figures}
        programs.append(facts | {"seconds": seconds(figures, target.chip), "instead": instead})
    work = run.work
    return {
        "model": {
            "path": config.model.path,
            "family": spec.family,
            "layers": spec.num_layers,
            "parameters": count_parameters(spec),
            "bytes_per_chip": run.weights,
        },
        "target": {"name": target.name, "chips": target.count, "chip_bytes": target.chip.memory},
        "compiled": target.devices is not None,
        "mesh": {**run.layout.sizes, "why": run.layout.why},
        "assumptions": vars(ASSUMED),
        "not_counted": _not_counted(config),
        "work": {
            "train_questions": work.train_questions,
            "eval_questions": work.eval_questions,
            "questions_guessed": work.guessed,
            "shard": config.search.shard,
            "rounds": config.rounds,
            "search_programs": search_programs(
                config, spec, work, run.sizes, target.chip.platform, run.mesh
            ),
            "tree_calls": work.calls,
            "tree_tokens": work.tokens,
            "eval_calls": work.eval_calls,
            "eval_tokens": work.eval_tokens,
            "roles": [vars(role) | {"parts": list(map(list, role.parts))} for role in work.roles],
        },
        "programs": programs,
        "stages": stages(config, work, run.sizes, programs, target.count),
        "fits": all(program["fits"] is not False for program in programs),
    }


def measured(
    run: PlannedRun,
    programs: Sequence[AbstractProgram],
    whole: bool,
    on_program: Callable[[str], None] | None = None,
) -> list[Figures]:
    """The figures of some of a run's programs, each with whether it fits on a device."""
    target = run.target
    found = measure_all(
        programs, run.spec, run.mesh, target.count, whole=whole, on_program=on_program
    )
    # Without a compiler only arguments and operations are known so far; the formula adds the rest.
    # The dictionaries in `found` are updated in place.
    for program, figures in zip(programs, found, strict=True):
        if not target.devices:
            figures["temporaries"] = formula.temporaries(program, run)
        have, refused = target.chip.memory, figures.pop("refused", False)
        need = total_bytes(figures)
        # What the compiler refuses does not fit: it may use a little less than the nominal size.
        fits = None if have is None else need <= have and not refused
        figures |= {"total_bytes": need, "fits": fits}
    return found


def _not_counted(config: Config) -> list[str]:
    """What the run does beside the plan, which is that of a search level by level in one pass."""
    search, found = config.search, list[str]()
    if config.ablations:
        found.append(f"{counted(len(config.ablations), 'ablation')}, each trained and evaluated")
    if search.streaming:
        found.append("search.streaming's larger caches and the idle time it saves")
    if search.spare:
        found.append("search.spare's second prefill and second wait")
    return found


def _instead(run: PlannedRun, program: AbstractProgram, whole: bool) -> str:
    """The first change of settings with which a program fits, in words."""
    for fields in nearest.changes(run.config, program.kind, run.sizes, run.layout):
        try:
            settings = nearest.changed(run.config, fields)
            other = lay_out(settings, run.spec, run.target, run.roles, run.beside)
        except UserError:  # a mesh that these devices cannot make, or rows beyond the memory
            continue
        # Only this program is measured again. Others that do not fit get suggestions of their own.
        same = [p for p in other.programs if p.name == program.name]
        if same and measured(other, same, whole)[0]["fits"]:
            return ", ".join(f"{name}: {value}" for name, value in fields.items())
    return f"no setting on {counted(run.target.count, 'chip')}; a larger slice"
