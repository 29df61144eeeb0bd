"""The phases of a role's training: SFT, DPO, KTO and the clipped policy gradient.

Each function says what its phase computes from the examples; `phase.Phase` and `loop.run` do what
is the same for all.
"""

from __future__ import annotations

from collections.abc import Sequence
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
    TrainConfig,
)
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
from malt_jax.training.references import finite, reference_key
from malt_jax.training.saver import MemorySaver, Saver
from malt_jax.training.step import Trainable

RATIO_SLACK = 1e-3
"""How far from 1 any ratio may be at the start of an on-policy phase, in float32 on a CPU."""
LOG_RATIO_SLACK = 0.05
"""Mean absolute log-ratio there in bfloat16, and on GPUs and TPUs, which may multiply float32 in
TF32 or bfloat16: single tokens are then off by more, without any fault."""


def train_phase(
    name: str,
    model: BaseModel,
    policy: Trainable,
    examples: Sequence[Any],
    config: PhaseConfig | None = None,
    *,
    saver: Saver | None = None,
    seed: int = 0,
    dropout: float = 0.0,
    template: str = "",
    on_policy: bool = False,
    on_step: OnStep | None = None,
    mesh: Mesh | None = None,
) -> TrainOutcome:
    """Trains by the phase `name`, with its default fields if no config is given.

    A reference is the policy that the phase starts from.
    """
    config = config or TrainConfig().phase(name)
    given: dict[str, Any] = {"saver": saver, "seed": seed, "on_step": on_step, "mesh": mesh}
    if isinstance(config, SftConfig):
        return train_sft(model, policy, examples, config, dropout=dropout, **given)
    given["template"] = template
    if isinstance(config, DpoConfig):
        return train_dpo(model, policy, policy, examples, config, **given)
    if isinstance(config, KtoConfig):
        return train_kto(model, policy, examples, config, **given)
    return train_pg(model, policy, examples, config, on_policy=on_policy, **given)


def train_sft(
    model: BaseModel,
    policy: Trainable,
    examples: Sequence[SftExample],
    config: SftConfig,
    *,
    saver: Saver | None = None,
    seed: int = 0,
    dropout: float = 0.0,
    on_step: OnStep | None = None,
    mesh: Mesh | None = None,
) -> TrainOutcome:
    """Trains an adapter over the model, or full weights, to imitate the examples' completions.

    `saver` keeps checkpoints: a call on one that holds some continues from them, or returns the
    finished result. If the examples are of several roles, every batch mixes them evenly. Raises
    what `loop.run` raises, and UserError if no example is left after length filtering.
    """
    phase = Phase(model, examples, config, seed, mesh)
    weights = _array(example.weight for example in phase.examples)
    weighted = bool(np.any(weights != 1.0))

    def extra(step: int, rows: PackedRows) -> dict[str, np.ndarray]:
        return {"weight": fill_sequences(rows, weights)} if weighted else {}

    def held_out(policy: Trainable) -> dict[str, float]:
        sums, lengths = phase.score(policy, phase.held_plan)
        # Sequences that are not in the held-out plan are NaN and count for nothing.
        loss = float(-np.nansum(sums * weights) / np.nansum(lengths * weights))
        return {"held_out_loss": loss, "score": -loss}

    return phase.train(
        policy,
        # Not by weight: in a batch of one a weight would cancel itself. Weights have a mean of 1.
        counts=lambda example: float(len(example.completion_ids)),
        extra=extra,
        held_out=held_out,
        saver=saver or MemorySaver(),
        dropout=dropout,
        on_step=on_step,
    )


def train_dpo(
    model: BaseModel,
    policy: Trainable,
    reference: np.ndarray | Trainable,
    pairs: Sequence[DpoExample],
    config: DpoConfig,
    *,
    saver: Saver | None = None,
    seed: int = 0,
    template: str = "",
    on_step: OnStep | None = None,
    mesh: Mesh | None = None,
) -> TrainOutcome:
    """Trains `policy` to prefer the chosen completions, against the frozen `reference`.

    `reference`: the SFT policy, whose log-probabilities are computed once and kept by the saver, or
    those log-probabilities themselves, `[pairs, 2]` (chosen, rejected), as `reference_logprobs`
    computes them with this config and seed. `policy` must start as the reference. `template`: the
    role's prompt template, which is hashed into the key of stored reference log-probabilities.
    Otherwise as `train_sft`; raises UserError too if a log-probability that is used is not finite.
    """
    saver = saver or MemorySaver()
    phase = Phase(model, pairs, config, seed, mesh)
    if isinstance(reference, np.ndarray):
        # The caller's rows are all pairs; the phase uses those that its config and seed choose.
        given = "compute them by `reference_logprobs` with the same config and seed"
        logprobs = finite(
            reference[phase.indices], "the {} pairs that this phase uses", given
        ).reshape(-1)
    else:
        compute = lambda: finite(_pairs(phase, reference, saver), "{} pairs")  # noqa: E731
        key = reference_key(model.fingerprint, reference, phase.examples, template)
        logprobs = saver.references(key, compute).reshape(-1)
    margins = _array(pair.margin for pair in phase.examples)

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
        loss = float(np.mean(result.loss))
        # Accuracy decides. Among equals it is the lower loss, scaled to less than one pair.
        score = accuracy - loss / (1.0 + loss) / (len(margin) + 1)
        return {"held_out_accuracy": accuracy, "held_out_loss": loss, "score": score}

    return phase.train(
        policy,
        counts=lambda pair: 1.0,
        references=logprobs,
        extra=extra,
        held_out=held_out,
        first=metric_at_reference(config),
        saver=saver,
        on_step=on_step,
    )


def train_kto(
    model: BaseModel,
    policy: Trainable,
    examples: Sequence[UnpairedExample],
    config: KtoConfig,
    *,
    saver: Saver | None = None,
    seed: int = 0,
    template: str = "",
    on_step: OnStep | None = None,
    mesh: Mesh | None = None,
) -> TrainOutcome:
    """Trains `policy` towards desirable completions and away from undesirable ones.

    The reference is the policy that training starts from. Its divergence is estimated before each
    step, on the batch's prompts with each other's completions. Otherwise as `train_dpo`.
    """
    saver = saver or MemorySaver()
    phase = Phase(model, examples, config, seed, mesh)
    weight = _array(example.weight for example in phase.examples)
    desirable = _array(example.label for example in phase.examples)
    # The completions of each batch under other prompts. The held-out examples are one more batch.
    batches = [*phase.batches, phase.held]
    firsts = np.cumsum([0, *map(len, batches)])
    longest = config.loop.max_length
    segments = [
        mismatched([phase.examples[i] for i in batch], longest, int(first))
        for batch, first in zip(batches, firsts, strict=False)
    ]
    other_plan, others = phase.plan_segments(segments), int(firsts[-1])

    def measure_start() -> np.ndarray:
        # Nothing of this pass is kept before it ends, so a stop request abandons it.
        own, _ = phase.score(policy, phase.every_example, on_batch=saver.raise_if_stopped)
        mixed, _ = phase.score(policy, other_plan, others, saver.raise_if_stopped)
        return finite(np.concatenate([own, mixed])[:, None], "{} completions")

    key = reference_key(model.fingerprint, policy, phase.examples, template, segments)
    stored = saver.references(key, measure_start).reshape(-1)
    references, other_references = stored[: phase.sequences], stored[phase.sequences :]

    def kl(step: int, weights: Trainable) -> np.float32:
        """The mean log-ratio of the batch's mismatched completions; TRL does not let it below 0."""
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
        loss = float(np.average(np.asarray(result.loss), weights=weight[phase.held]))
        return {"held_out_loss": loss, "score": -loss}

    return phase.train(
        policy,
        counts=lambda example: 1.0,  # not its weight, as in `train_sft`
        references=references,
        extra=extra,
        before_step=lambda step, weights: {"kl": kl(step, weights)},
        held_out=held_out,
        first=metric_at_reference(config),
        saver=saver,
        on_step=on_step,
    )


def train_pg(
    model: BaseModel,
    policy: Trainable,
    examples: Sequence[PolicyExample],
    config: PgConfig,
    *,
    saver: Saver | None = None,
    seed: int = 0,
    template: str = "",
    on_policy: bool = False,
    on_step: OnStep | None = None,
    mesh: Mesh | None = None,
) -> TrainOutcome:
    """Trains `policy` by the clipped policy gradient on completions with stored log-probabilities.

    `on_policy`: `policy` is the one that sampled the completions, so every probability ratio is 1
    at the start. In float32 on a CPU a ratio that is further from 1 than `RATIO_SLACK` is a
    UserError, otherwise a mean absolute log-ratio above `LOG_RATIO_SLACK`. `start_ratio` and
    `start_ratio_gap` of the outcome's `measured` show the ratios in any case. Otherwise as
    `train_dpo`.
    """
    saver = saver or MemorySaver()
    phase = Phase(model, examples, config, seed, mesh)
    advantage = _array(example.advantage for example in phase.examples)
    lengths = np.array([len(example.completion_ids) for example in phase.examples])
    ends = np.cumsum(lengths)
    behaviour = _array(x for example in phase.examples for x in example.logprobs)

    def measure_start() -> np.ndarray:
        found = phase.score_tokens(policy, phase.every_example, saver.raise_if_stopped)
        return finite(found[:, None], "{} tokens")

    key = reference_key(model.fingerprint, policy, phase.examples, template)
    start = saver.references(key, measure_start).reshape(-1)
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
        policy,
        counts=lambda example: float(len(example.completion_ids)),
        extra=extra,
        held_out=held_out,
        measured={"start_ratio": float(np.mean(ratios)), "start_ratio_gap": gap},
        saver=saver,
        on_step=on_step,
    )


def is_exact(params: Any) -> bool:
    """Whether `RATIO_SLACK` bounds every token here, and not only `LOG_RATIO_SLACK` the mean."""
    # Over an int8 base, a rounding error of float32 can move an activation by one in 15 bits.
    in_float32 = weights_dtype(params) == "float32" and jax.default_backend() == "cpu"
    return in_float32 and not is_rounded(params)


def reference_logprobs(
    model: BaseModel,
    reference: Trainable,
    pairs: Sequence[DpoExample],
    config: DpoConfig,
    *,
    seed: int = 0,
    mesh: Mesh | None = None,
) -> np.ndarray:
    """The reference's log-probabilities of chosen and rejected completions, float32 `[pairs, 2]`.

    NaN for pairs that `train_dpo` does not use with this config and seed: those that the length
    filter drops and those that `loop.steps` does not reach. The numbers are computed in the same
    packed rows that it trains on.
    """
    phase = Phase(model, pairs, config, seed, mesh)
    logprobs = np.full((len(pairs), 2), np.nan, np.float32)
    logprobs[phase.indices] = _pairs(phase, reference, MemorySaver())
    return logprobs


def _pairs(phase: Phase[DpoExample], reference: Trainable, saver: Saver) -> np.ndarray:
    # Nothing of this pass is kept before it ends, so a stop request abandons it.
    sums, _ = phase.score(reference, phase.every_example, on_batch=saver.raise_if_stopped)
    return sums.reshape(-1, 2)


def _array(values: Any) -> np.ndarray:
    return np.fromiter(values, np.float32)
