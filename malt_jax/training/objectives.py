"""Objectives: from a micro-batch's log-probabilities to its part of a step's loss and metrics.

Each phase has one. An objective is static and compiled into the step; what varies between steps is
in the `Batch`. Every figure is a sum over the micro-batch divided by the whole step's total, so the
micro-batches of a step add up to the loss, and to the metrics, of one large batch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from malt_jax.config.training import DpoConfig, KtoConfig, PgConfig, PhaseConfig
from malt_jax.data.packing import PackedRows
from malt_jax.training.logprobs import slot_sums
from malt_jax.training.losses import (
    PolicyLoss,
    PreferenceLoss,
    UnpairedLoss,
    policy_loss,
    preference_loss,
    sft_loss,
    unpaired_loss,
)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Batch:
    """One micro-batch of a step."""

    rows: PackedRows
    reference: Any
    """[R S] float32: the reference's log-probability of each sequence; zeros where the objective
    has none."""
    total: Any
    """Float32 scalar: what the loss of the whole step is a mean over."""
    learning_rate: Any
    last: Any
    """Whether the step ends with this micro-batch."""
    key: Any
    """Key of dropout."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Further inputs of the objective: float32 scalars, [R S] by sequence or [R C] by target."""


@runtime_checkable
class Objective(Protocol):
    """A loss; equal objectives share compiled programs."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of its metrics, `loss` among them."""

    @property
    def reads(self) -> dict[str, str]:
        """What it needs in `Batch.extra`: one number a `step`, a `sequence` or a `target`."""

    def __call__(
        self, logprobs: Float[Array, "R C"], batch: Batch
    ) -> tuple[Float[Array, ""], dict[str, Array]]: ...


def objective_of(config: PhaseConfig) -> Objective:
    """The objective of a phase."""
    if isinstance(config, DpoConfig):
        return Preferences(PreferenceLoss.of(config))
    if isinstance(config, KtoConfig):
        return UnpairedPreferences(UnpairedLoss.of(config))
    if isinstance(config, PgConfig):
        return PolicyGradient(PolicyLoss.of(config))
    return Imitation()


@dataclass(frozen=True)
class Imitation:
    """SFT: a mean over completion tokens, each times the weight of its example."""

    metrics: ClassVar[tuple[str, ...]] = ("loss", "tokens")
    reads: ClassVar[dict[str, str]] = {}

    def __call__(self, logprobs: Array, batch: Batch) -> tuple[Array, dict[str, Array]]:
        weights = batch.rows.weights
        # Left out where all weights are 1, so that published SFT is computed as it always was.
        if "weight" in batch.extra:
            weights = weights * to_targets(batch.extra["weight"], batch.rows)
        value = sft_loss(logprobs, weights, batch.total)
        return value, {"loss": value, "tokens": jnp.sum(batch.rows.weights)}


@dataclass(frozen=True)
class Preferences:
    """DPO: a mean over pairs."""

    config: PreferenceLoss
    metrics: ClassVar[tuple[str, ...]] = (
        "loss", "preference_loss", "nll", "accuracy", "ties", "margin",
        "chosen_reward", "rejected_reward", "pairs",
    )  # fmt: skip

    @property
    def reads(self) -> dict[str, str]:
        return {"margin": "sequence"} if self.config.offset else {}

    def __call__(self, logprobs: Array, batch: Batch) -> tuple[Array, dict[str, Array]]:
        config = self.config
        # The branches of a segment have neighbouring slots, so two slots in a row are one pair.
        pair = lambda x: x.reshape(x.shape[0], -1, 2)  # noqa: E731
        policy, lengths = (pair(x) for x in by_sequence(logprobs, batch.rows))
        # Empty slots are computed like all others and left out of every mean.
        valid = (pair(batch.rows.sequences)[:, :, 0] >= 0).astype(jnp.float32)
        # Both completions carry the margin of their pair.
        margins = pair(batch.extra["margin"])[:, :, 0] if config.offset else None
        result = preference_loss(policy, pair(batch.reference), lengths, config, margins)
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


@dataclass(frozen=True)
class UnpairedPreferences:
    """KTO: a mean over completions, each times its weight.

    `desirable` is 1 or 0. `share` is 1 / the number of completions of the sequence's kind in the
    step, for the means of the rewards. `kl` is the step's estimate of the divergence.
    """

    config: UnpairedLoss
    metrics: ClassVar[tuple[str, ...]] = (
        "loss", "preference_loss", "kl", "margin", "desirable_reward", "undesirable_reward",
        "completions",
    )  # fmt: skip
    reads: ClassVar[dict[str, str]] = {
        "desirable": "sequence",
        "weight": "sequence",
        "share": "sequence",
        "kl": "step",
    }

    def __call__(self, logprobs: Array, batch: Batch) -> tuple[Array, dict[str, Array]]:
        policy, _ = by_sequence(logprobs, batch.rows)
        extra = batch.extra
        desirable, weight = extra["desirable"], extra["weight"]
        result = unpaired_loss(policy, batch.reference, desirable, extra["kl"], self.config)
        # Empty slots have weight 0 and share 0.
        valid = (batch.rows.sequences >= 0).astype(jnp.float32)
        mean = lambda x: jnp.sum(x * valid) / batch.total  # noqa: E731
        good = jnp.sum(result.reward * extra["share"] * desirable)
        bad = jnp.sum(result.reward * extra["share"] * (1.0 - desirable))
        loss = jnp.sum(result.loss * weight) / batch.total
        return loss, {
            "loss": loss,
            "preference_loss": mean(result.unweighted),
            # Every micro-batch knows the whole step's estimate, so each adds its share of it.
            "kl": mean(jnp.full_like(valid, extra["kl"])),
            "margin": good - bad,
            "desirable_reward": good,
            "undesirable_reward": bad,
            "completions": jnp.sum(valid),
        }


@dataclass(frozen=True)
class PolicyGradient:
    """The clipped policy gradient: a mean over completion tokens.

    `behaviour` and `start` are the log-probabilities of the policy that sampled the completion and
    of the one that the phase starts from.
    """

    config: PolicyLoss
    metrics: ClassVar[tuple[str, ...]] = (
        "loss", "ratio", "clip_fraction", "approx_kl", "penalty", "tokens",
    )  # fmt: skip
    reads: ClassVar[dict[str, str]] = {
        "advantage": "sequence",
        "behaviour": "target",
        "start": "target",
    }

    def __call__(self, logprobs: Array, batch: Batch) -> tuple[Array, dict[str, Array]]:
        rows, extra = batch.rows, batch.extra
        advantages = to_targets(extra["advantage"], rows)
        terms = policy_loss(logprobs, extra["behaviour"], extra["start"], advantages, self.config)
        mean = lambda x: jnp.sum(x * rows.weights) / batch.total  # noqa: E731
        loss, penalty = mean(terms.loss), mean(terms.penalty)
        if self.config.kl_weight:
            loss = loss + self.config.kl_weight * penalty
        return loss, {
            "loss": loss,
            "ratio": mean(terms.ratio),
            "clip_fraction": mean(terms.clipped),
            "approx_kl": mean(terms.moved),
            "penalty": penalty,
            "tokens": jnp.sum(rows.weights),
        }


def by_sequence(
    logprobs: Float[Array, "R C"], rows: PackedRows
) -> tuple[Float[Array, "R S"], Float[Array, "R S"]]:
    """Each packed sequence's summed log-probability, and its number of completion tokens."""
    count = rows.sequences.shape[1]
    # Padding has slot 0 and weight 0, so it adds nothing to the first sequence.
    sums = slot_sums(logprobs * rows.weights, rows.slots, count)
    return sums, slot_sums(rows.weights, rows.slots, count)


def to_targets(values: Float[Array, "R S"], rows: PackedRows) -> Float[Array, "R C"]:
    """Each target gets the value of its sequence."""
    return jnp.take_along_axis(values, rows.slots, axis=1)
