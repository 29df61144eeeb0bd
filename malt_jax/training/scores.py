"""Log-probabilities of given completions under given weights, in the packed rows of training."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from malt_jax.config.training import SftConfig
from malt_jax.data.packing import Segment, share_prompts
from malt_jax.models.lora import Adapter
from malt_jax.models.quantized import weights_dtype
from malt_jax.training.phase import BaseModel
from malt_jax.training.placement import plan_on
from malt_jax.training.plan import Plan
from malt_jax.training.scoring import score_plan, score_tokens
from malt_jax.training.step import Program, Trainable, make_program, scoring

BATCH = 64
"""Completions that are packed together."""

Sequences = Sequence[tuple[tuple[int, ...], tuple[int, ...]]]
"""Token ids of each prompt and its completion, neither of them empty."""


def completion_logprobs(
    model: BaseModel,
    weights: Trainable | None,
    sequences: Sequences,
    *,
    mesh: Mesh | None = None,
) -> np.ndarray:
    """log P(completion | prompt), summed over the completion's tokens, float32 `[N]`.

    `weights`: an adapter over the model or full weights; None for the model itself.
    """
    program, frozen, plan = _packed(model, weights, sequences, mesh)
    return score_plan(program, weights, frozen, plan, len(sequences), mesh)[0]


def logprobs_of_tokens(
    model: BaseModel,
    weights: Trainable | None,
    sequences: Sequences,
    *,
    mesh: Mesh | None = None,
) -> np.ndarray:
    """Log-probability of every completion token, float32, one completion after the other."""
    program, frozen, plan = _packed(model, weights, sequences, mesh)
    lengths = [len(completion) for _, completion in sequences]
    return score_tokens(program, weights, frozen, plan, lengths, mesh)


def _packed(
    model: BaseModel, weights: Trainable | None, sequences: Sequences, mesh: Mesh | None
) -> tuple[Program, nnx.State | None, Plan]:
    """The scoring program, the frozen weights it needs, and a plan of all sequences."""
    config = SftConfig()
    # Completions of one prompt stand together, so that it is computed once for all of them.
    order = sorted(range(len(sequences)), key=lambda i: sequences[i])
    segments = [Segment(sequences[i][0], (sequences[i][1],), (i,)) for i in order]
    longest = max(len(prompt) + len(completion) for prompt, completion in sequences)
    batches = [
        share_prompts(segments[i : i + BATCH], longest) for i in range(0, len(segments), BATCH)
    ]
    backend = jax.default_backend()
    plan = plan_on(mesh, batches, model.spec, config.loop, backend)
    dtype = weights_dtype(model.params)
    program = scoring(make_program(model.graph, dtype, config, 0.0, backend))
    # Full weights take the place of the base.
    frozen = model.params if weights is None or isinstance(weights, Adapter) else None
    return program, frozen, plan
