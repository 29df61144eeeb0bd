"""What a run needs of the machine, counted in a second or two without compiling anything."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace

import jax

from malt_jax.config.run import Config
from malt_jax.models.lora import init_adapter
from malt_jax.models.spec import ModelSpec
from malt_jax.planning import formula
from malt_jax.planning.chips import find_target
from malt_jax.planning.plan import count_parameters, settle
from malt_jax.planning.programs import device_bytes
from malt_jax.planning.work import Assumptions

BYTES_PER_TOKEN = 20
"""Of a tree's record: token id, log-probability and text."""


@dataclass(frozen=True)
class Needs:
    """Bytes, of the kind `malt plan` prints."""

    memory: int
    """On each device, the arrays of the largest program. On an accelerator its temporaries are
    added by formula; on a CPU the formula is too far from what the compiler uses."""
    disk: int
    """Of trees, checkpoints and export together."""


def count_needs(config: Config, spec: ModelSpec, kinds: Collection[str]) -> Needs:
    """The needs of a run's programs of these kinds (`sampling`, `sft`, `dpo`) on these devices."""
    target = replace(find_target(None), devices=None)  # so that nothing is compiled
    setting = settle(config, spec, target, Assumptions())
    peaks = []
    for program in setting.programs:
        if program.kind in kinds:
            arrays = device_bytes(program.build(spec.num_layers)[1]) + program.resident
            if target.chip.platform != "cpu":
                arrays += formula.temporaries(program, config, spec, setting.sizes)
            peaks.append(arrays)
    parameters = count_parameters(spec)
    itemsize = setting.sizes.dtype.itemsize
    roles = config.pipeline.roles
    trained = parameters if config.train.full else _adapter_parameters(config, spec)
    phases = sum({"none": 0, "sft": 1, "sft+dpo": 2}[role.train] for role in roles)
    checkpoints = config.rounds * phases * trained * 4
    export = len(roles) * parameters * itemsize if config.export.merged else 0
    trees = config.rounds * setting.work.tokens * BYTES_PER_TOKEN
    return Needs(max(peaks, default=0), checkpoints + export + trees)


def _adapter_parameters(config: Config, spec: ModelSpec) -> int:
    key = jax.eval_shape(lambda: jax.random.key(0))
    adapter = jax.eval_shape(lambda k: init_adapter(spec, config.train.lora, k), key)
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(adapter))
