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

from malt_jax.config.training import DpoConfig, OptimConfig, SftConfig
from malt_jax.data.packing import PackedRows
from malt_jax.models.lora import Adapter, with_dropout
from malt_jax.training.logprobs import chunked_logprobs, gather_hidden, slot_sums
from malt_jax.training.losses import PreferenceLoss, preference_loss, sft_loss
from malt_jax.training.optim import Optimiser, transformation, update

Trainable = Adapter | nnx.State

CHUNK_BYTES = 512 << 20
"""Size of the logits that exist at once on an accelerator."""
CPU_CHUNK_BYTES = 64 << 20
"""Size of the logits that exist at once on a CPU."""


@dataclass(frozen=True)
class Program:
    """The static part of a step; equal programs share one compilation."""

    graph: nnx.GraphDef
    dtype: str
    """The dtype of the computation."""
    optim: Optimiser
    loss: PreferenceLoss | None
    """The preference loss; None for SFT."""
    dropout: float
    remat: str
    chunk_bytes: int
    """Size of the logits that exist at once."""
    logit_chunk: int
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


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Batch:
    """One micro-batch of a step."""

    rows: PackedRows
    reference: Any
    """[R S] float32: the reference's log-probability of each sequence (SFT: zeros)."""
    total: Any
    """Float32 scalar: completion tokens (SFT) or pairs (DPO) of the whole step."""
    learning_rate: Any
    last: Any
    """Whether the step ends with this micro-batch."""
    key: Any
    """Key of dropout."""


def make_program(
    graph: nnx.GraphDef, dtype: Any, config: SftConfig | DpoConfig, dropout: float, backend: str
) -> Program:
    """The program of a phase."""
    loop = config.loop
    loss = PreferenceLoss.of(config) if isinstance(config, DpoConfig) else None
    return Program(
        graph=graph,
        dtype=jnp.dtype(dtype).name,
        optim=Optimiser.of(config.optim),
        loss=loss,
        dropout=0.0 if loss else dropout,  # dropout would perturb the likelihoods that DPO compares
        remat=loop.remat if loop.remat != "auto" else "none" if backend == "cpu" else "dots",
        chunk_bytes=CPU_CHUNK_BYTES if backend == "cpu" else CHUNK_BYTES,
        logit_chunk=loop.logit_chunk,
        explode=loop.explode,
    )


def scoring(program: Program) -> Program:
    """The part of a program that `score_rows` depends on, so that phases share its compilation."""
    # Programs are compared as a whole, so every field that scoring ignores gets a fixed value.
    # `remat` is off because there is no backward pass to recompute for.
    unused = Optimiser.of(OptimConfig())
    return replace(program, optim=unused, loss=None, dropout=0.0, remat="none", explode=0.0)


def init_state(program: Program, trainable: Trainable) -> TrainState:
    """Fresh moments and empty sums; the weights are copied, because steps donate their buffers."""
    # Float32, because bfloat16 rounds by about 0.4%, which would swallow small updates.
    masters = jax.tree.map(lambda x: jnp.array(x, jnp.float32, copy=True), trainable)
    return TrainState(
        trainable=masters,
        moments=transformation(program.optim).init(masters),
        gradients=jax.tree.map(jnp.zeros_like, masters),
        sums={name: jnp.zeros((), jnp.float32) for name in metric_names(program)},
    )


def metric_names(program: Program) -> tuple[str, ...]:
    if program.loss is None:
        return ("loss", "tokens")
    pairs = ("accuracy", "ties", "margin", "chosen_reward", "rejected_reward")
    return ("loss", "preference_loss", "nll", *pairs, "pairs")


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
    if program.loss is not None:
        return _preferences(program.loss, logprobs, batch)
    value = sft_loss(logprobs, batch.rows.weights, batch.total)
    return value, {"loss": value, "tokens": jnp.sum(batch.rows.weights)}


@partial(jax.jit, static_argnums=0)
def score_rows(
    program: Program, trainable: Trainable | None, frozen: nnx.State | None, rows: PackedRows
) -> tuple[Float[Array, "R S"], Float[Array, "R S"]]:
    """Each packed sequence's completion: summed log-probability, and number of tokens."""
    logprobs = policy_logprobs(program, trainable, frozen, rows, None, scoring=True)
    return _by_sequence(logprobs, rows)


def policy_logprobs(
    program: Program,
    trainable: Trainable | None,
    frozen: nnx.State | None,
    rows: PackedRows,
    key: Array | None,
    *,
    scoring: bool = False,
) -> Float[Array, "R C"]:
    """Log-probability of every target of packed rows; 0 at padding. None: the bare base model."""
    # 1. The weights. An adapter works beside the base; full weights replace it.
    adapter, params = None, frozen
    if isinstance(trainable, Adapter):
        adapter = trainable if key is None else with_dropout(trainable, program.dropout, key)
    elif trainable is not None:
        # Cast inside the differentiated function, so gradients reach the masters in float32.
        params = jax.tree.map(lambda x: x.astype(program.dtype), trainable)
    decoder = nnx.merge(program.graph, params)
    # 2. The hidden state of every token; a shared prompt is computed once.
    hidden = decoder.hidden_packed(
        rows.tokens, rows.positions, rows.segments, rows.branches, adapter, _remat(program.remat)
    )
    # 3. The logits, which are the largest arrays: of targets only, and a chunk at a time.
    count = rows.targets.shape[0]
    # As many targets as keep float32 logits [R, chunk, V] within chunk_bytes, in multiples of 16.
    fitting = program.chunk_bytes // (4 * decoder.spec.vocab * count)
    # `logit_chunk` counts targets of all rows together, `chunk` those of one row.
    chunk = program.logit_chunk // count or max(16, fitting // 16 * 16)
    return chunked_logprobs(
        gather_hidden(hidden, rows.sources),
        rows.targets,
        rows.weights,
        decoder.logits,
        min(max(chunk, 1), rows.targets.shape[1]),
        # An adapter has no part in the head, so the head is frozen beside it. Scoring has no
        # backward pass, for which the gradients would be prepared.
        head_frozen=adapter is not None and not scoring,
    )


def _remat(policy: str) -> Callable | None:
    if policy == "none":
        return None
    policies = jax.checkpoint_policies
    # `dots` keeps the projections' results; products with batch axes, as those of attention, are
    # computed again. `full` (no policy) keeps nothing inside a layer.
    saved = policies.dots_with_no_batch_dims_saveable if policy == "dots" else None
    return partial(jax.checkpoint, policy=saved)


def _by_sequence(logprobs: Array, rows: PackedRows) -> tuple[Array, Array]:
    count = rows.sequences.shape[1]
    # Padding has slot 0 and weight 0, so it adds nothing to the first sequence.
    sums = slot_sums(logprobs * rows.weights, rows.slots, count)
    return sums, slot_sums(rows.weights, rows.slots, count)


def _preferences(
    config: PreferenceLoss, logprobs: Array, batch: Batch
) -> tuple[Array, dict[str, Array]]:
    """The loss and metrics of the pairs in a micro-batch, as sums over them / pairs of the step."""
    # The branches of a segment have neighbouring slots, so two slots in a row are one pair.
    pair = lambda x: x.reshape(x.shape[0], -1, 2)  # noqa: E731
    policy, lengths = (pair(x) for x in _by_sequence(logprobs, batch.rows))
    # Empty slots are computed like all others and left out of every mean.
    valid = (pair(batch.rows.sequences)[:, :, 0] >= 0).astype(jnp.float32)
    result = preference_loss(policy, pair(batch.reference), lengths, config)
    mean = lambda x: jnp.sum(x * valid) / batch.total  # noqa: E731
    margin = result.chosen_reward - result.rejected_reward
    preference, nll = mean(result.loss), mean(result.nll)
    loss = preference + config.nll_weight * nll if config.nll_weight else preference
    return loss, {
        "loss": loss,
        "preference_loss": preference,
        "nll": nll,
        "accuracy": mean((margin > 0).astype(jnp.float32)),
        "ties": mean((margin == 0).astype(jnp.float32)),
        "margin": mean(margin),
        "chosen_reward": mean(result.chosen_reward),
        "rejected_reward": mean(result.rejected_reward),
        "pairs": jnp.sum(valid),
    }
