"""Memory and disk that a run needs, counted in a second or two without compiling anything."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import jax

from malt_jax.config.model import ModelConfig
from malt_jax.config.pipeline import split_phases
from malt_jax.config.run import Config
from malt_jax.models.lora import init_adapter
from malt_jax.models.spec import ModelSpec
from malt_jax.planning import formula
from malt_jax.planning.abstract_programs import device_bytes
from malt_jax.planning.bases import parts_of
from malt_jax.planning.chips import Target, find_target
from malt_jax.planning.plan import count_parameters, lay_out
from malt_jax.planning.work import Work

BYTES_PER_TOKEN = 20
"""Size of a tree's record on disk, per token: token id, log-probability and text."""

UPDATED_COPIES = 3
"""Of all weights, in float32, that a step of full fine-tuning holds on a CPU beside its arguments.

As many as it writes, of weights and both moments (7.56 GB where the weights take 2.52)."""


@dataclass(frozen=True)
class Needs:
    """Bytes, of the kind that `malt plan` prints."""

    memory: int
    """The arrays of the largest program, per device. On an accelerator temporaries are added by
    formula; on a CPU, where that is too far from what the compiler uses, only the copies that an
    update of full fine-tuning makes."""
    disk: int
    """The size of trees, checkpoints and export together."""


def count_needs_of_bases(
    config: Config, specs: Mapping[ModelConfig, ModelSpec], kinds: Collection[str]
) -> Needs:
    """The needs of a run with these base models, which take turns, as `count_needs` counts them."""
    parts = parts_of(config, specs, find_target(None, compiles=False))
    needs = [count_needs(part.config, part.spec, kinds, part.roles, part.beside) for part in parts]
    return Needs(max(one.memory for one in needs), sum(one.disk for one in needs))


def count_needs(
    config: Config,
    spec: ModelSpec,
    kinds: Collection[str],
    roles: tuple[str, ...] = (),
    beside: int = 0,
    target: Target | None = None,
) -> Needs:
    """The needs of a run's programs of these kinds (`sampling`, or a phase) on these devices.

    `roles` and `beside` as in `lay_out`. `target`: other devices than this machine's.
    """
    target = target or find_target(None, compiles=False)
    run = lay_out(config, spec, target, roles, beside)
    # Programs run one at a time, so the largest decides.
    largest = 0
    for program in run.programs:
        if program.kind in kinds:
            arrays = device_bytes(program.build(spec.num_layers)[1]) + program.resident
            if target.chip.platform != "cpu":
                arrays += formula.temporaries(program, run)
            elif config.train.full and program.name.endswith(" step"):
                arrays += UPDATED_COPIES * formula.FLOAT32 * count_parameters(spec)
            largest = max(largest, arrays)
    return Needs(largest, disk_bytes(config, spec, run.work, run.sizes.dtype.itemsize))


def disk_bytes(config: Config, spec: ModelSpec, work: Work, itemsize: int) -> int:
    """Bytes that a whole run leaves in its directory."""
    own = {role.name for role in work.roles}
    roles = [role for role in config.pipeline.roles if role.name in own]
    parameters = count_parameters(spec)
    key = jax.eval_shape(lambda: jax.random.key(0))
    adapter = jax.eval_shape(lambda k: init_adapter(spec, config.train.lora, k), key)
    adapter_parameters = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(adapter))
    trained = parameters if config.train.full else adapter_parameters
    # Checkpoints count as the trained float32 weights of each phase, without the optimiser's
    # moments.
    phases = sum(len(split_phases(role.train)) for role in roles)
    checkpoints = config.rounds * phases * trained * formula.FLOAT32
    export = len(roles) * parameters * itemsize if config.export.merged else 0
    return checkpoints + export + config.rounds * work.tokens * BYTES_PER_TOKEN
