"""One training step as a pure function, and the same forward pass for scoring.

What is trained is either an `Adapter` over frozen base parameters or, for full fine-tuning, the
parameters themselves: float32 masters, cast to the model's dtype to compute. Everything that
varies between roles is an argument of the step, so all roles share one compiled program; `Program`
holds what is compiled in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float

from malt_jax.config.training import OptimConfig, PhaseConfig
from malt_jax.data.packing import PackedRows
from malt_jax.models.lora import Adapter, with_dropout
from malt_jax.training import remat
from malt_jax.training.logprobs import chunked_divergence, chunked_logprobs, gather_hidden
from malt_jax.training.objectives import Batch, Imitation, Objective, by_sequence, objective_of
from malt_jax.training.optim import Optimiser, transformation, update

Trainable = Adapter | nnx.State

CHUNK_BYTES = 512 << 20
"""Size of the logits that exist at once on an accelerator."""
CPU_CHUNK_BYTES = 64 << 20
"""Size of the logits that exist at once on a CPU."""


COMPILER_OPTIONS: dict[str, dict[str, str | bool]] = {
    # By default XLA's CPU compiler orders operations so that many can run side by side. That begins
    # what the backward pass computes again before it is due, and keeps it: rematerialisation then
    # saves next to nothing.
    "cpu": {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"},
}
"""Options that the training step is compiled with, by platform."""


@dataclass(frozen=True)
class Program:
    """The static part of a step; equal programs share one compilation."""

    graph: nnx.GraphDef
    dtype: str
    """The dtype of the computation."""
    optim: Optimiser
    objective: Objective
    dropout: float
    remat: str
    chunk_bytes: int
    """Size of the logits that exist at once."""
    logit_chunk: int
    copied_head: bool
    """Whether the step copies the transposed head once, for all chunks of logits, as CPUs need."""
    explode: float


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """What a step changes; donated to it."""

    trainable: Any
    moments: Any
    """The optimiser's state."""
    gradients: Any
    """Sum over the step's micro-batches so far, float32."""
    sums: dict[str, Any]
    """The step's metrics so far."""


def make_program(
    graph: nnx.GraphDef, dtype: Any, config: PhaseConfig, dropout: float, backend: str
) -> Program:
    """The program of a phase."""
    loop, objective = config.loop, objective_of(config)
    return Program(
        graph=graph,
        dtype=jnp.dtype(dtype).name,
        optim=Optimiser.of(config.optim),
        objective=objective,
        # Dropout would perturb the likelihoods that all other objectives compare.
        dropout=dropout if isinstance(objective, Imitation) else 0.0,
        remat=remat.resolve(loop.remat, backend),
        chunk_bytes=CPU_CHUNK_BYTES if backend == "cpu" else CHUNK_BYTES,
        logit_chunk=loop.logit_chunk,
        copied_head=backend == "cpu",
        explode=loop.explode,
    )


def scoring(program: Program) -> Program:
    """The part of a program that `score_rows` depends on, so that phases share its compilation."""
    # Programs are compared as a whole, so every field that scoring ignores gets a fixed value.
    # `remat` is off because there is no backward pass to recompute for.
    unused = Optimiser.of(OptimConfig())
    return replace(
        program, optim=unused, objective=Imitation(), dropout=0.0, remat="none", explode=0.0
    )


def init_state(program: Program, trainable: Trainable) -> TrainState:
    """Fresh moments and empty sums; the weights are copied, because steps donate their buffers."""
    # Float32, because bfloat16 rounds by about 0.4%, which would swallow small updates.
    masters = jax.tree.map(lambda x: jnp.array(x, jnp.float32, copy=True), trainable)
    return TrainState(
        trainable=masters,
        moments=transformation(program.optim).init(masters),
        gradients=jax.tree.map(jnp.zeros_like, masters),
        sums={name: jnp.zeros((), jnp.float32) for name in program.objective.metrics},
    )


def train_step(
    program: Program, state: TrainState, frozen: nnx.State | None, batch: Batch
) -> tuple[TrainState, dict[str, Array]]:
    """Adds the gradient of one micro-batch; the last one of a step updates the weights.

    Losses are sums over the micro-batch divided by the whole step's total, so the sum of the
    gradients is that of one large batch. A gradient that is not finite or exceeds `explode` changes
    nothing. Metrics are those of the step so far; `gradient_norm` is 0 before the last micro-batch.
    """

    # Differentiated by the trained weights only: the frozen base gets no gradient.
    loss = lambda weights: batch_loss(program, weights, frozen, batch)  # noqa: E731
    gradients, parts = jax.grad(loss, has_aux=True)(state.trainable)
    # Gradients have the dtype of the masters, so micro-batches add up in float32.
    gradients = jax.tree.map(jnp.add, state.gradients, gradients)
    sums = {name: state.sums[name] + parts[name] for name in state.sums}

    def finish(state: TrainState) -> tuple[TrainState, Array]:
        # 1. The norm of the whole step's gradient, before it is clipped.
        norm = optax.global_norm(gradients)
        # 2. The update is computed in any case, from whatever the gradient holds.
        moved, moments = update(
            program.optim, gradients, state.moments, state.trainable, batch.learning_rate
        )
        # 3. `where` selects and does not multiply, so a NaN of a refused update cannot spread.
        sound = jnp.isfinite(norm) & (norm <= program.explode)
        keep = lambda new, old: jax.tree.map(partial(jnp.where, sound), new, old)  # noqa: E731
        return TrainState(
            trainable=keep(moved, state.trainable),
            moments=keep(moments, state.moments),
            gradients=jax.tree.map(jnp.zeros_like, gradients),
            sums=jax.tree.map(jnp.zeros_like, sums),
        ), norm

    def accumulate(state: TrainState) -> tuple[TrainState, Array]:
        return replace(state, gradients=gradients, sums=sums), jnp.zeros((), jnp.float32)

    # `last` is traced, so one compiled program serves every micro-batch of a step.
    state, norm = jax.lax.cond(batch.last, finish, accumulate, state)
    # `sums` are those of the step so far, although `finish` has cleared them in the state.
    return state, {**sums, "gradient_norm": norm}


def batch_loss(
    program: Program, trainable: Trainable, frozen: nnx.State | None, batch: Batch
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """A micro-batch's part of its step's loss, and of the step's metrics."""
    key = batch.key if program.dropout else None
    logprobs = policy_logprobs(program, trainable, frozen, batch.rows, key)
    return program.objective(logprobs, batch)


@partial(jax.jit, static_argnums=0)
def score_rows(
    program: Program, trainable: Trainable | None, frozen: nnx.State | None, rows: PackedRows
) -> tuple[Float[Array, "R S"], Float[Array, "R S"]]:
    """Each packed sequence's completion: summed log-probability, and number of tokens."""
    logprobs = policy_logprobs(program, trainable, frozen, rows, None, scoring=True)
    return by_sequence(logprobs, rows)


@partial(jax.jit, static_argnums=0)
def score_targets(
    program: Program, trainable: Trainable | None, frozen: nnx.State | None, rows: PackedRows
) -> Float[Array, "R C"]:
    """The log-probability of every target, 0 at padding."""
    return policy_logprobs(program, trainable, frozen, rows, None, scoring=True)


@partial(jax.jit, static_argnums=0)
def divergence(
    program: Program,
    ours: Trainable,
    theirs: Trainable,
    frozen: nnx.State | None,
    rows: PackedRows,
) -> Float[Array, ""]:
    """The sum over all targets of KL(ours || theirs) of the next token."""
    # Exact at each place, because both distributions are known there; only the places, the prefixes
    # that the rows hold, are a sample.
    (mine, a), (other, b) = (_hidden(program, w, frozen, rows, None) for w in (ours, theirs))
    chunk = _chunk_length(program, a, rows)
    heads = _logits(program, a), _logits(program, b)
    return jnp.sum(chunked_divergence(mine, other, rows.weights, *heads, chunk))


def policy_logprobs(
    program: Program,
    trainable: Trainable | None,
    frozen: nnx.State | None,
    rows: PackedRows,
    key: Array | None,
    *,
    scoring: bool = False,
) -> Float[Array, "R C"]:
    """Log-probability of every target of packed rows; 0 at padding.

    `trainable` None: the base model alone.
    """
    hidden, decoder = _hidden(program, trainable, frozen, rows, key)
    # The logits are the largest arrays: they are of targets only, and a chunk at a time.
    return chunked_logprobs(
        hidden,
        rows.targets,
        rows.weights,
        _logits(program, decoder),
        _chunk_length(program, decoder, rows),
        # An adapter has no part in the head, so the head is frozen beside it. Scoring has no
        # backward pass, for which the gradients would be prepared.
        head_frozen=isinstance(trainable, Adapter) and not scoring,
    )


def _hidden(
    program: Program,
    trainable: Trainable | None,
    frozen: nnx.State | None,
    rows: PackedRows,
    key: Array | None,
) -> tuple[Float[Array, "R C D"], Any]:
    """The hidden state that each target is predicted from, and the decoder that made it."""
    # 1. The weights. An adapter works beside the base; full weights replace it.
    adapter, params = None, frozen
    if isinstance(trainable, Adapter):
        adapter = trainable if key is None else with_dropout(trainable, program.dropout, key)
    elif trainable is not None:
        # Cast inside the differentiated function, so gradients reach the masters in float32.
        params = jax.tree.map(lambda x: x.astype(program.dtype), trainable)
    decoder = nnx.merge(program.graph, params)
    # 2. The hidden state of every token; a shared prompt is computed once.
    itemsize = jnp.dtype(program.dtype).itemsize
    policy = remat.of_shape(program.remat, decoder.spec, rows.tokens.size, itemsize)
    hidden = decoder.hidden_packed(
        rows.tokens, rows.positions, rows.segments, rows.branches, adapter, remat.transform(policy)
    )
    return gather_hidden(hidden, rows.sources), decoder


def _logits(program: Program, decoder: Any) -> Callable[[Array], Array]:
    """The product with the head, which a loop over chunks of logits calls."""
    return decoder.logits_of_loop() if program.copied_head else decoder.logits


def _chunk_length(program: Program, decoder: Any, rows: PackedRows) -> int:
    """Targets of each row whose logits are in memory at once."""
    count, targets = rows.targets.shape
    # As many targets as keep float32 logits [R, chunk, V] within chunk_bytes, in multiples of 16.
    fitting = program.chunk_bytes // (4 * decoder.spec.vocab * count)
    # `logit_chunk` counts targets of all rows together, the chunk those of one row.
    chunk = program.logit_chunk // count if program.logit_chunk else max(16, fitting // 16 * 16)
    return min(max(chunk, 1), targets)
