"""Temporaries by formula, where there is no compiler for the target: estimates for one device."""

from __future__ import annotations

from malt_jax.config.run import Config
from malt_jax.models.spec import ModelSpec
from malt_jax.planning.programs import Program
from malt_jax.planning.sizes import Sizes, largest
from malt_jax.sampling.memory import LOGIT_COPIES
from malt_jax.training.step import CHUNK_BYTES

ELEMENT = 2
"""Bytes of an activation."""


def temporaries(program: Program, config: Config, spec: ModelSpec, sizes: Sizes) -> int:
    """Bytes a program needs beside its arguments.

    Sampling: the draw's copies of the logits, or a call's activations. Training: what `remat` keeps
    of every layer for the backward pass, one layer's attention scores in float32, and logits.
    """
    if program.kind == "sampling":
        return _sampling(program, spec, sizes)
    return _training(program, config, spec, sizes)


def _sampling(program: Program, spec: ModelSpec, sizes: Sizes) -> int:
    shapes, lanes = sizes.shapes, sizes.lanes
    if program.name == "fork":
        return 0
    if program.name == "decode":
        return LOGIT_COPIES * 4 * spec.vocab * shapes.rows
    count = int(program.name.split()[-1])
    tokens = count * lanes.tokens
    blocks = 2 * count * spec.kv_heads * spec.head_dim * shapes.prefix_tokens
    scores = 2 * 4 * tokens * spec.heads * shapes.prefix_tokens
    return ELEMENT * ((2 * spec.d_mlp + 4 * spec.d_model) * tokens + blocks) + scores


def _training(program: Program, config: Config, spec: ModelSpec, sizes: Sizes) -> int:
    phase, plan = (
        (config.train.sft, sizes.sft) if program.kind == "sft" else (config.train.dpo, sizes.dpo)
    )
    shape = largest(plan)
    heads, kv = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    products = heads + 2 * kv + 2 * spec.d_model + 2 * spec.d_mlp
    kept = {"full": spec.d_model, "none": 3 * products}.get(
        phase.loop.remat, products + spec.d_model
    )
    layers = 1 if program.name == "reference" else spec.num_layers
    scores = 3 * 4 * shape.rows * spec.heads * shape.time**2
    return ELEMENT * shape.rows * shape.time * kept * layers + scores + 3 * CHUNK_BYTES
