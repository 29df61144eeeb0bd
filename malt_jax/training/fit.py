"""The phases of a role's training: SFT, DPO, KTO and the clipped policy gradient.

Each function says what its phase reads from the examples and measures on the held-out ones. The
loss is the phase's objective (`objectives.objective_of`), which `Phase.train` compiles into the
step; `phase.Phase` and `loop.run` do what is the same for all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from malt_jax.config.training import (
    DpoConfig,
    KtoConfig,
    PgConfig,
    PhaseConfig,
    SftConfig,
)

# `algorithm`, which imports no config, has its class of settings from here.
from malt_jax.config.training import TrainConfig as TrainConfig
from malt_jax.data.examples import DpoExample, PolicyExample, SftExample, UnpairedExample
from malt_jax.data.packing import PackedRows, places
from malt_jax.errors import UserError
from malt_jax.models.quantized import is_rounded, weights_dtype
from malt_jax.training.dataset import mismatched
from malt_jax.training.loop import OnStep, TrainOutcome
from malt_jax.training.losses import (
    metric_at_reference,
    policy_loss,
    preference_loss,
    unpaired_loss,
)
from malt_jax.training.phase import BaseModel, Phase, fill_sequences
from malt_jax.training.plan import Plan
from malt_jax.training.saver import Saver
from malt_jax.training.step import Trainable

RATIO_SLACK = 1e-3
"""How far from 1 any ratio may be at the start of an on-policy phase, in float32 on a CPU."""
LOG_RATIO_SLACK = 0.05
"""Mean absolute log-ratio there in bfloat16, and on GPUs and TPUs, which may multiply float32 in
TF32 or bfloat16: single tokens are then off by more, without any fault."""


def train_phase(
    model: BaseModel,
    policy: Trainable,
    examples: Sequence[Any],
    config: PhaseConfig,
    *,
    saver: Saver | None = None,
    seed: int = 0,
    dropout: float = 0.0,
    on_policy: bool = False,
    on_step: OnStep | None = None,
    mesh: Mesh | None = None,
) -> TrainOutcome:
    """Trains `policy`, an adapter over the model or full weights, by the phase of the config.

    A reference is the policy that the phase starts from; its log-probabilities are computed once
    and kept by the saver. It also keeps checkpoints: a call with a saver that holds some continues
    from them, or returns the finished result. `dropout` is that of the adapter in SFT.
    `on_policy`: `policy` is the one that sampled the completions of a policy gradient. Raises what
    `loop.run` raises, and UserError if no example is left after length filtering or a
    log-probability is not finite.
    """
    phase: Phase[Any] = Phase(
        model,
        policy,
        examples,
        config,
        saver=saver,
        seed=seed,
        on_step=on_step,
        mesh=mesh,
    )
    if isinstance(config, SftConfig):
        return _sft(phase, dropout)
    if isinstance(config, DpoConfig):
        return _dpo(phase, config)
    if isinstance(config, KtoConfig):
        return _kto(phase, config)
    return _pg(phase, config, on_policy)


def _sft(phase: Phase[SftExample], dropout: float) -> TrainOutcome:
    """Trains to imitate the completions; several roles' examples are mixed in every batch."""
    weights = _array(example.weight for example in phase.examples)
    weighted = bool(np.any(weights != 1.0))

    def extra(step: int, rows: PackedRows) -> dict[str, np.ndarray]:
        return {"weight": fill_sequences(rows, weights)} if weighted else {}

    def held_out(policy: Trainable) -> dict[str, float]:
        sums, lengths = phase.score(policy, phase.held_plan)
        # Sequences that are not in the held-out plan are NaN and count for nothing.
        loss = float(-np.nansum(sums * weights) / np.nansum(lengths))
        return {"held_out_loss": loss, "score": -loss}

    return phase.train(
        # Not by weight: in a batch of one a weight would cancel itself. Weights have a mean of 1.
        counts=lambda example: float(len(example.completion_ids)),
        extra=extra,
        held_out=held_out,
        dropout=dropout,
    )


def _dpo(phase: Phase[DpoExample], config: DpoConfig) -> TrainOutcome:
    """Trains to prefer the chosen completions, against the frozen policy it starts from."""

    def measure_start(on_batch: Callable[[], None]) -> np.ndarray:
        sums, _ = phase.score(phase.start, phase.every_example, on_batch=on_batch)
        return sums.reshape(-1, 2)

    logprobs = phase.log_probabilities_at_start("pairs", measure_start)
    margins = _array(pair.margin for pair in phase.examples)
    if (config.offset > 0) != bool(np.any(margins)):
        raise ValueError(
            f"offset: found {config.offset:g}, and pairs "
            f"{'without' if config.offset else 'with'} a margin, of which one does nothing without "
            "the other; select with margins='gap' and train with an offset, or neither."
        )

    def extra(step: int, rows: PackedRows) -> dict[str, np.ndarray]:
        return {"margin": fill_sequences(rows, np.repeat(margins, 2))} if config.offset else {}

    def held_out(weights: Trainable) -> dict[str, float]:
        sums, lengths = phase.score(weights, phase.held_plan)
        held = lambda x: jnp.asarray(x.reshape(-1, 2)[phase.held])  # noqa: E731
        offsets = jnp.asarray(margins[phase.held])
        result = preference_loss(held(sums), held(logprobs), held(lengths), config, offsets)
        margin = np.asarray(result.chosen_reward - result.rejected_reward)
        # A tie counts half, so a policy that equals its reference has an accuracy of 0.5.
        accuracy = float(np.mean((margin > 0) + 0.5 * (margin == 0)))
        loss = float(np.mean(result.loss + config.nll_weight * result.nll))
        if config.loss == "nll":  # it learns no preference
            return {"held_out_accuracy": accuracy, "held_out_loss": loss, "score": -loss}
        # Accuracy decides. Among equals it is the lower loss, scaled to less than one pair.
        score = accuracy - loss / (1.0 + loss) / (len(margin) + 1)
        return {"held_out_accuracy": accuracy, "held_out_loss": loss, "score": score}

    return phase.train(
        counts=lambda pair: 1.0,
        references=logprobs,
        extra=extra,
        held_out=held_out,
        first=metric_at_reference(config),
    )


def _kto(phase: Phase[UnpairedExample], config: KtoConfig) -> TrainOutcome:
    """Trains towards desirable completions and away from undesirable ones.

    The divergence from the policy it starts from is estimated before each step, on the batch's
    prompts with other prompts' completions.
    """
    weight = _array(example.weight for example in phase.examples)
    desirable = _array(example.label for example in phase.examples)
    # The completions of each batch under other prompts. The held-out examples are one more batch.
    batches = [*phase.batches, phase.held]
    firsts = np.cumsum([0, *map(len, batches)])
    longest, left_out = config.loop.max_length, {*phase.held}
    learned = [example for i, example in enumerate(phase.examples) if i not in left_out]
    segments = [
        mismatched([phase.examples[i] for i in batch], longest, int(first), learned)
        for batch, first in zip(batches, firsts, strict=False)
    ]
    other_plan, others = phase.plan_segments(segments), int(firsts[-1])

    def measure_start(on_batch: Callable[[], None]) -> np.ndarray:
        own, _ = phase.score(phase.start, phase.every_example, on_batch=on_batch)
        mixed, _ = phase.score(phase.start, other_plan, others, on_batch)
        return np.concatenate([own, mixed])[:, None]

    stored = phase.log_probabilities_at_start("completions", measure_start, segments)
    references, other_references = stored[: phase.sequences], stored[phase.sequences :]

    def kl(step: int, weights: Trainable) -> np.float32:
        """The mean log-ratio of the batch's mismatched completions, at least 0, as in TRL."""
        sums, _ = phase.score(weights, Plan((other_plan.steps[step],)), others)
        return np.float32(max(0.0, np.nanmean(sums - other_references)))

    def extra(step: int, rows: PackedRows) -> dict[str, np.ndarray]:
        kinds = desirable[phase.batches[step]]
        count = np.where(desirable > 0, np.sum(kinds), np.sum(1.0 - kinds))
        share = 1.0 / np.maximum(count, 1.0)
        values = {"desirable": desirable, "weight": weight, "share": share}
        filled = {name: fill_sequences(rows, array) for name, array in values.items()}
        return {**filled, "kl": np.zeros((), np.float32)}

    def held_out(weights: Trainable) -> dict[str, float]:
        sums, _ = phase.score(weights, phase.held_plan)
        held = lambda x: jnp.asarray(x[phase.held])  # noqa: E731
        z = jnp.asarray(kl(len(phase.batches), weights))
        result = unpaired_loss(held(sums), held(references), held(desirable), z, config)
        loss = float(np.mean(np.asarray(result.loss) * weight[phase.held]))
        return {"held_out_loss": loss, "score": -loss}

    return phase.train(
        counts=lambda example: 1.0,  # not its weight, as in SFT
        references=references,
        extra=extra,
        before_step=lambda step, weights: {"kl": kl(step, weights)},
        held_out=held_out,
        first=metric_at_reference(config),
    )


def _pg(phase: Phase[PolicyExample], config: PgConfig, on_policy: bool) -> TrainOutcome:
    """Trains by the clipped policy gradient on completions with stored log-probabilities.

    `on_policy`: every probability ratio is 1 at the start. In float32 on a CPU a ratio that is
    further from 1 than `RATIO_SLACK` is a UserError, otherwise a mean absolute log-ratio above
    `LOG_RATIO_SLACK`. `start_ratio` and `start_ratio_gap` of the outcome's `measured` show the
    ratios in any case.
    """
    advantage = _array(example.advantage for example in phase.examples)
    lengths = np.array([len(example.completion_ids) for example in phase.examples])
    ends = np.cumsum(lengths)
    behaviour = _array(x for example in phase.examples for x in example.logprobs)

    def measure_start(on_batch: Callable[[], None]) -> np.ndarray:
        return phase.score_tokens(phase.start, phase.every_example, on_batch)[:, None]

    start = phase.log_probabilities_at_start("tokens", measure_start)
    ratios = np.exp(start - behaviour)
    gap = float(np.max(np.abs(ratios - 1.0)))
    mean = float(np.mean(np.abs(start - behaviour)))
    strict = is_exact(phase.model.params)
    if on_policy and not (gap <= RATIO_SLACK if strict else mean <= LOG_RATIO_SLACK):
        far = np.add.reduceat(np.abs(ratios - 1.0) > RATIO_SLACK, ends - lengths) > 0
        bound = (
            f"allowed: {RATIO_SLACK:g}"
            if strict
            else f"and the mean absolute log-ratio is {mean:.2g}, allowed: {LOG_RATIO_SLACK:g}"
        )
        raise UserError(
            f"the stored log-probabilities of {int(far.sum())} of {len(far)} completions are not "
            "those of the policy that training starts from: a token's probability ratio is "
            f"{gap:.2g} away from 1, {bound}. The completions were sampled by "
            "other weights, or by the same ones in another precision, such as `sampler.weights: "
            "int8`; search again with the weights that training starts from."
        )

    def extra(step: int, rows: PackedRows) -> dict[str, np.ndarray]:
        filled = {name: np.zeros(rows.targets.shape, np.float32) for name in ("behaviour", "start")}
        for r, targets, sequence in places(rows):
            tokens = slice(ends[sequence] - lengths[sequence], ends[sequence])
            filled["behaviour"][r, targets] = behaviour[tokens]
            filled["start"][r, targets] = start[tokens]
        return {"advantage": fill_sequences(rows, advantage), **filled}

    def held_out(weights: Trainable) -> dict[str, float]:
        now = phase.score_tokens(weights, phase.held_plan)
        held = lambda x: jnp.asarray(x[~np.isnan(now)])  # noqa: E731
        advantages = held(np.repeat(advantage, lengths))
        terms = policy_loss(held(now), held(behaviour), held(start), advantages, config)
        loss = float(np.mean(terms.loss) + config.kl_weight * np.mean(terms.penalty))
        return {"held_out_loss": loss, "score": -loss}

    return phase.train(
        counts=lambda example: float(len(example.completion_ids)),
        extra=extra,
        held_out=held_out,
        measured={"start_ratio": float(np.mean(ratios)), "start_ratio_gap": gap},
    )


def is_exact(params: Any) -> bool:
    """Whether `RATIO_SLACK` bounds every token here, and not only `LOG_RATIO_SLACK` the mean."""
    # Over an int8 base, a rounding error of float32 can move an activation by one in 15 bits.
    in_float32 = weights_dtype(params) == "float32" and jax.default_backend() == "cpu"
    return in_float32 and not is_rounded(params)


def _array(values: Any) -> np.ndarray:
    return np.fromiter(values, np.float32)
