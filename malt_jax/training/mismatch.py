"""How far the trainer's log-probabilities are from those that the sampler stored.

Sampler and trainer compute the same tokens with the same weights by different programs. Where they
disagree by more than rounding, a policy gradient takes the difference for a step of the policy, and
every phase learns from completions of another distribution than it assumes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jax.sharding import Mesh

from malt_jax.training.fit import LOG_RATIO_SLACK, RATIO_SLACK, is_exact
from malt_jax.training.phase import BaseModel
from malt_jax.training.scores import logprobs_of_tokens
from malt_jax.training.step import Trainable
from malt_jax.tree.node import Node


@dataclass(frozen=True)
class Mismatch:
    """Absolute differences of log-probabilities, per token."""

    mean: float
    largest: float
    tokens: int
    completions: int


def measure_mismatch(
    model: BaseModel, weights: Trainable | None, nodes: Sequence[Node], mesh: Mesh | None = None
) -> Mismatch:
    """Scores nodes by the weights that sampled them; None for the base model's own.

    What is stored is rounded to `tree.node.LOGPROB_DIGITS` decimals.
    """
    sequences = [(node.prompt_ids, node.token_ids) for node in nodes]
    stored = np.array([x for node in nodes for x in node.logprobs], np.float32)
    gaps = np.abs(logprobs_of_tokens(model, weights, sequences, mesh=mesh) - stored)
    # NaN would make every comparison with the bound below false.
    gaps = np.where(np.isfinite(gaps), gaps, np.inf)
    return Mismatch(float(gaps.mean()), float(gaps.max()), len(gaps), len(nodes))


def mismatch_warning(found: Mismatch, model: BaseModel) -> str | None:
    """A sentence if the mismatch is above the bound of the policy gradient's own check.

    That is `RATIO_SLACK` for any token in float32 on a CPU; with rounded weights, in bfloat16 and
    on accelerators it is `LOG_RATIO_SLACK` for the mean.
    """
    strict = is_exact(model.params)
    value, bound = (found.largest, RATIO_SLACK) if strict else (found.mean, LOG_RATIO_SLACK)
    if value <= bound:
        return None
    which = "the largest difference" if strict else "the mean difference"
    return (
        f"WARNING: {which} of {value:.2g} is above {bound:g}, so the sampler draws from another "
        "distribution than the trainer computes: by `sampler.weights: int8` or `sampler.cache: "
        "int8`, by other weights than those of the search, or by a fault on this device"
    )
