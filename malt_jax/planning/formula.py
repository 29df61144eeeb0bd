"""Estimates in closed form, where there is no compiler for the target.

Arguments of a program and its operations are exact, since they follow from its shapes. What it
needs beside its arguments (temporaries) is decided by the compiler; these formulas name the largest
parts of it. All are bytes on one device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp

from malt_jax.models.sharding import mesh_parts, parts_of
from malt_jax.models.spec import ModelSpec
from malt_jax.planning.abstract_programs import AbstractProgram
from malt_jax.planning.training_steps import FLOAT32, largest, working_bytes
from malt_jax.sampling.memory import LOGIT_COPIES

if TYPE_CHECKING:
    from malt_jax.planning.plan import PlannedRun


def layer_weights(spec: ModelSpec) -> int:
    """Parameters of one layer's matrices: queries and output, keys and values, gated MLP."""
    heads, kv = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    return spec.d_model * (2 * heads + 2 * kv + 3 * spec.all_mlp)


def active_weights(spec: ModelSpec) -> int:
    """Those of them that one token meets: all, but in a mixture only of the experts it chose."""
    return layer_weights(spec) - 3 * spec.d_model * (spec.all_mlp - spec.active_mlp)


def temporaries(program: AbstractProgram, run: PlannedRun) -> int:
    """Bytes that a program of a run needs beside its arguments."""
    return _sampling(program, run) if program.kind == "sampling" else _training(program, run)


def _sampling(program: AbstractProgram, run: PlannedRun) -> int:
    spec, sizes, mesh = run.spec, run.sizes, run.mesh
    shapes, shards = sizes.shapes, mesh_parts(mesh, "batch")
    if program.name == "copy":
        return 0
    if program.name == "decode":
        # A step's activations are small beside the float32 logits that top-k and top-p search.
        vocab = spec.vocab // parts_of(mesh, "vocab", spec.vocab)
        return LOGIT_COPIES * FLOAT32 * vocab * -(-shapes.rows // shards)
    # Prefill: the activations of one layer, and of one chunk at a time its prompt's cache and
    # queries times keys in float32, once as scores and once as probabilities.
    count = int(program.name.split()[-1])
    tokens = -(-count // shards) * sizes.prefill.tokens
    mlp = spec.active_mlp // parts_of(mesh, "mlp", spec.active_mlp)
    heads = spec.heads // parts_of(mesh, "heads", spec.heads)
    kv_heads = spec.kv_heads // parts_of(mesh, "kv_heads", spec.kv_heads)
    activations = (2 * mlp + 4 * spec.d_model) * tokens
    cache = 2 * kv_heads * spec.head_dim * shapes.prefix_tokens
    scores = 2 * FLOAT32 * sizes.prefill.tokens * heads * shapes.prefix_tokens
    return jnp.dtype(sizes.dtype).itemsize * (activations + cache) + scores


def _training(program: AbstractProgram, run: PlannedRun) -> int:
    config, sizes = run.config, run.sizes
    phase, shape = config.train.phase(program.kind), largest(sizes.steps[program.kind])
    element = jnp.dtype(sizes.dtype).itemsize
    backward = not program.name.endswith("reference")
    # Formulas stand in for the compilers of accelerators; a CPU's is always at hand.
    total = working_bytes(phase, run.spec, shape, element, "accelerator", run.mesh, backward)
    if config.train.full:
        parameters = run.weights // element
        # The float32 weights are cast to compute, and this micro-batch's gradient is added to
        # the step's, which is an argument.
        total += run.weights if element != FLOAT32 else 0
        total += FLOAT32 * parameters if backward else 0
    return total
