"""The plan of a run whose roles have base models of their own: one part per model.

The parts take turns on the device. Their weights lie on it together where they fit, or one at a
time; then a search reads them again between its levels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from malt_jax.config.model import ModelConfig
from malt_jax.config.run import Config
from malt_jax.errors import UserError
from malt_jax.models.exchange import fit_together, memory_here
from malt_jax.models.spec import ModelSpec
from malt_jax.models.weights import weight_bytes
from malt_jax.planning.chips import Target
from malt_jax.planning.sizes import model_dtype


@dataclass(frozen=True)
class Part:
    """What one base model does in a run."""

    config: Config
    """The run's, as if this were the model of all roles."""
    spec: ModelSpec
    roles: tuple[str, ...]
    weights: int
    """Bytes of its weights."""
    beside: int = 0
    """Bytes of the other models' weights that lie on the device meanwhile."""


def parts_of(config: Config, specs: Mapping[ModelConfig, ModelSpec], target: Target) -> list[Part]:
    """The parts of a run, that of its own model first; a run of one model is one part."""
    names = [role.name for role in config.pipeline.roles]
    found = []
    for base in config.bases:
        roles = tuple(replace(role, model={}) for role in config.pipeline.roles)
        alone = replace(config, model=base, pipeline=replace(config.pipeline, roles=roles))
        own = tuple(name for name in names if config.model_of(name) == base)
        size = weight_bytes(specs[base], model_dtype(alone, target.chip.platform), base.quantize)
        found.append(Part(alone, specs[base], own, size))
    if len(found) == 1:
        return found
    if target.count > 1:
        raise UserError(
            f"pipeline.roles: base models of roles' own run on one device, and {target.name} has "
            f"{target.count}; plan for one of them, or give all roles the run's model."
        )
    total = sum(part.weights for part in found)
    if not together(found, target):
        return found
    return [replace(part, beside=total - part.weights) for part in found]


def together(parts: list[Part], target: Target) -> bool:
    """Whether the parts' weights fit on the target together, as a run on it would decide."""
    on_host = target.chip.platform == "cpu"
    memory = memory_here() if on_host else target.chip.memory
    return fit_together([part.weights for part in parts], memory)


def residency(config: Config, parts: list[Part], target: Target, questions: int) -> dict[str, Any]:
    """How the models of a run share the device, as plain data.

    `reads`: how often a round of the search of so many questions reads a model's weights.
    """
    order = [config.model_of(role.name) for role in config.pipeline.roles]
    # The first level of a block follows the last level of the one before.
    changes = sum(one != before for one, before in zip(order, [order[-1], *order], strict=False))
    passes = 2 if config.search.spare else 1
    resident = together(parts, target)
    blocks = math.ceil(questions / config.search.block)
    return {
        "together": resident,
        "models": [
            {"path": p.config.model.path, "roles": list(p.roles), "bytes": p.weights} for p in parts
        ],
        "reads": len(parts) if resident else blocks * passes * changes,
    }
