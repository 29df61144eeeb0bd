"""The plan of a run: work, programs, fit, hours; plain data, from the config alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh

from malt_jax.config.run import Config
from malt_jax.errors import UserError
from malt_jax.models.mesh import AXES, Layout, choose_layout, make_mesh, slice_count
from malt_jax.models.spec import ModelSpec
from malt_jax.models.weights import abstract_params
from malt_jax.planning import formula, nearest
from malt_jax.planning.chips import Target
from malt_jax.planning.compiler import Figures, measure_all, seconds, total_bytes
from malt_jax.planning.hours import stages
from malt_jax.planning.programs import Program, run_programs, weight_bytes
from malt_jax.planning.sizes import Sizes, choose_sizes
from malt_jax.planning.work import Assumptions, Work, count_work
from malt_jax.progress import counted

OnProgram = Callable[[str], None]


@dataclass(frozen=True)
class Setting:
    """What a config comes to on a target: where things lie, and the programs to compile."""

    config: Config
    spec: ModelSpec
    target: Target
    work: Work
    layout: Layout
    mesh: Mesh | AbstractMesh
    weights: int
    """Bytes of the parameters on one device."""
    sizes: Sizes
    programs: list[Program]

    def measured(
        self, programs: Sequence[Program], whole: bool, on_program: OnProgram | None = None
    ) -> list[Figures]:
        """Figures of the programs, each with whether it fits."""
        found = measure_all(
            programs, self.spec, self.mesh, self.target.count, whole=whole, on_program=on_program
        )
        for program, figures in zip(programs, found, strict=True):
            if not self.target.devices:
                figures["temporaries"] = formula.temporaries(
                    program, self.config, self.spec, self.sizes
                )
            have, need = self.target.chip.memory, total_bytes(figures)
            figures |= {"total_bytes": need, "fits": None if have is None else need <= have}
        return found


def settle(config: Config, spec: ModelSpec, target: Target, assume: Assumptions) -> Setting:
    """Lays the run out on the target; raises UserError where the mesh can't be."""
    work = count_work(config, assume)
    platform, memory = target.chip.platform, target.chip.memory
    dtype = "float32" if platform == "cpu" else "bfloat16"
    slices = slice_count(target.devices) if target.devices else 1
    size = (4 if platform == "cpu" else 2) * count_parameters(spec)
    layout = choose_layout(config.mesh, target.count, slices, spec, size, memory)
    mesh = _mesh(layout, target)
    weights = weight_bytes(config, spec, dtype, mesh)
    sizes = choose_sizes(config, spec, work, target, mesh, weights)
    programs = run_programs(config, spec, sizes, platform, mesh)
    return Setting(config, spec, target, work, layout, mesh, weights, sizes, programs)


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
    setting = settle(config, spec, target, assume)
    work, layout = setting.work, setting.layout
    programs = []
    found = setting.measured(setting.programs, whole, on_program)
    for program, figures in zip(setting.programs, found, strict=True):
        instead = _instead(setting, program, assume, whole) if figures["fits"] is False else None
        programs.append(
            {
                "name": program.name,
                "shape": program.shape,
                **figures,
                "seconds": seconds(figures, target.chip),
                "instead": instead,
            }
        )
    return {
        "model": {
            "path": config.model.path,
            "family": spec.family,
            "layers": spec.num_layers,
            "parameters": count_parameters(spec),
            "bytes_per_chip": setting.weights,
        },
        "target": {
            "name": target.name,
            "chips": target.count,
            "chip_bytes": target.chip.memory,
        },
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
            "roles": [
                {**vars(role), "heads": [list(head) for head in role.heads]} for role in work.roles
            ],
        },
        "programs": programs,
        "stages": stages(config, work, setting.sizes, programs, target),
        "fits": all(program["fits"] is not False for program in programs),
    }


def count_parameters(spec: ModelSpec) -> int:
    _, params = abstract_params(spec, "float32", stacked=True)
    return sum(math.prod(x.shape) for x in jax.tree.leaves(params))


def _mesh(layout: Layout, target: Target) -> Mesh | AbstractMesh:
    if target.devices is None:
        return AbstractMesh(layout.shape, AXES, axis_types=(AxisType.Auto,) * len(AXES))
    return make_mesh(layout, target.devices)


def _instead(setting: Setting, program: Program, assume: Assumptions, whole: bool) -> str:
    """The first change with which the program fits, in words."""
    config, sizes, layout = setting.config, setting.sizes, setting.layout
    for fields in nearest.changes(config, program.kind, sizes, layout):
        try:
            other = settle(nearest.changed(config, fields), setting.spec, setting.target, assume)
        except UserError:  # a mesh that these devices can't make, or slots beyond the memory
            continue
        same = [p for p in other.programs if p.name == program.name]
        if same and other.measured(same, whole)[0]["fits"]:
            return ", ".join(f"{name}: {value}" for name, value in fields.items())
    return f"no setting on {counted(setting.target.count, 'chip')}; a larger slice"
