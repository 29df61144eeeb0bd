"""The losses of the four phases as formulas: SFT, DPO, KTO and the clipped policy gradient."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from malt_jax.config.training import DpoConfig, KtoConfig, PgConfig, PhaseConfig


def sft_loss(
    logprobs: Float[Array, "R C"], weights: Float[Array, "R C"], tokens: Float[Array, ""]
) -> Float[Array, ""]:
    """Negative log-likelihood of completion tokens (end token included), a mean over `tokens`.

    `weights`: 0 for padding, otherwise the example's weight, which is 1 as published. `tokens`:
    those of the whole batch, of which this may be a part; parts add up to its loss.
    """
    # Not by the part's own tokens: a mean of means gives the tokens of small parts more weight.
    return -jnp.sum(logprobs * weights) / tokens


_Fields = TypeVar("_Fields", bound="LossFields")


@dataclass(frozen=True)
class LossFields:
    """The fields of a phase's config that its loss depends on; equal ones share a compilation."""

    @classmethod
    def of(cls: type[_Fields], config: PhaseConfig) -> _Fields:
        return cls(**{name: getattr(config, name) for name in cls.__dataclass_fields__})


@dataclass(frozen=True)
class PreferenceLoss(LossFields):
    """The fields of a `DpoConfig` that the loss depends on."""

    loss: str
    beta: float
    label_smoothing: float
    length_normalised: bool
    nll_weight: float
    offset: float


class Preference(NamedTuple):
    """Per-pair quantities; rewards are beta times the log-ratio of policy to reference."""

    loss: Float[Array, "*P"]
    nll: Float[Array, "*P"]
    """Negative log-likelihood per token of the chosen completion."""
    chosen_reward: Float[Array, "*P"]
    rejected_reward: Float[Array, "*P"]


def preference_loss(
    policy: Float[Array, "*P 2"],
    reference: Float[Array, "*P 2"],
    lengths: Float[Array, "*P 2"],
    config: PreferenceLoss | DpoConfig,
    margins: Float[Array, "*P"] | None = None,
) -> Preference:
    """Losses of pairs from summed log-probabilities, the chosen completion first.

    With h = (log-ratio of the chosen) - (log-ratio of the rejected):
    sigmoid: -log sigmoid(beta h) (Rafailov et al., arXiv 2305.18290, equation 7);
    with label smoothing e: -(1 - e) log sigmoid(beta h) - e log sigmoid(-beta h), conservative DPO
    (same, and Mitchell, "A note on DPO with noisy preferences and relationship to IPO", 2023);
    length-normalised: each log-ratio divided by its completion's tokens (Tulu 3, arXiv 2411.15124,
    equation 6); ipo: (h - 1 / (2 beta))^2 (Azar et al., arXiv 2310.12036, equation 17), with
    log-ratios per token, as its authors ran it. `nll` is RPO's other term (arXiv 2404.19733,
    equation 1), which the caller adds with its weight; with the loss `nll` it is the whole loss.
    With `margins` m, -log sigmoid(beta h - offset m), DPO with an offset (Amini et al., arXiv
    2402.10571): the better the chosen completion is than the other, the wider the gap has to be.
    """
    ratios = policy - reference
    # Empty slots have length 0. At least 1 keeps NaN out of them: 0 times NaN is still NaN.
    per_token = ratios / jnp.maximum(lengths, 1.0)
    chosen, rejected = _sides(per_token if _normalised(config) else ratios)
    gap = chosen - rejected
    nll = -_sides(policy / jnp.maximum(lengths, 1.0))[0]
    if config.loss == "nll":
        loss = nll
    elif config.loss == "ipo":
        loss = (gap - 1.0 / (2.0 * config.beta)) ** 2
    else:
        smooth = config.label_smoothing
        logit = config.beta * gap
        if margins is not None and config.offset:
            logit = logit - config.offset * margins
        # `log_sigmoid` is stable; the log of a sigmoid that underflows would be -infinity.
        loss = -(1.0 - smooth) * jax.nn.log_sigmoid(logit)
        if smooth:
            loss = loss - smooth * jax.nn.log_sigmoid(-logit)
    # Rewards are sums over the completion under every loss, so that they can be compared.
    chosen, rejected = _sides(ratios)
    return Preference(loss, nll, config.beta * chosen, config.beta * rejected)


@dataclass(frozen=True)
class UnpairedLoss(LossFields):
    """The fields of a `KtoConfig` that the loss depends on."""

    beta: float
    desirable_weight: float
    undesirable_weight: float


class Unpaired(NamedTuple):
    """Per-completion quantities of KTO."""

    loss: Float[Array, "*S"]
    unweighted: Float[Array, "*S"]
    """The loss without the weight of its kind: 1/2 where the policy equals its reference."""
    reward: Float[Array, "*S"]
    """Beta times the log-ratio of policy to reference."""


def unpaired_loss(
    policy: Float[Array, "*S"],
    reference: Float[Array, "*S"],
    desirable: Float[Array, "*S"],
    kl: Float[Array, ""],
    config: UnpairedLoss | KtoConfig,
) -> Unpaired:
    """KTO's loss from summed log-probabilities (Ethayarajh et al., arXiv 2402.01306, equation 7).

    With r the log-ratio of policy to reference, z = `kl` and `desirable` 1 or 0: a desirable
    completion costs lambda_D (1 - sigmoid(beta (r - z))), an undesirable one
    lambda_U (1 - sigmoid(beta (z - r))). z, at least 0, estimates the KL divergence of the policy
    from its reference and has no gradient.
    """
    ratios = policy - reference
    sign = 2.0 * desirable - 1.0
    unweighted = 1.0 - jax.nn.sigmoid(config.beta * sign * (ratios - kl))
    of_kind = jnp.where(desirable > 0, config.desirable_weight, config.undesirable_weight)
    return Unpaired(of_kind * unweighted, unweighted, config.beta * ratios)


@dataclass(frozen=True)
class PolicyLoss(LossFields):
    """The fields of a `PgConfig` that the loss depends on."""

    clip: float
    kl_weight: float


class PolicyTerms(NamedTuple):
    """Per-token quantities of the clipped policy gradient."""

    loss: Float[Array, "*C"]
    """Without the penalty, which the caller adds with its weight."""
    penalty: Float[Array, "*C"]
    """Estimate of KL(policy || start)."""
    ratio: Float[Array, "*C"]
    """Probability of the token now, relative to the policy that sampled it."""
    clipped: Float[Array, "*C"]
    """1 where the clip holds the token's gradient at 0."""
    moved: Float[Array, "*C"]
    """Estimate of KL(sampling policy || policy)."""


def policy_loss(
    policy: Float[Array, "*C"],
    behaviour: Float[Array, "*C"],
    start: Float[Array, "*C"],
    advantages: Float[Array, "*C"],
    config: PolicyLoss | PgConfig,
) -> PolicyTerms:
    """PPO's clipped surrogate of each token from log-probabilities (arXiv 1707.06347, equation 7).

    With rho = exp(policy - behaviour) and the completion's advantage A at each of its tokens, the
    loss is -min(rho A, clip(rho, 1 - eps, 1 + eps) A). `behaviour` are the log-probabilities that
    the search stored, at temperature 1 and unfiltered, and `policy` is measured in the same way.
    Both divergences use the estimator k3, x - 1 - log x of a probability ratio x, which is never
    below 0 and unbiased for samples of the divergence's first policy (Schulman, "Approximating KL
    divergence", 2020); for the penalty these are the behaviour's, as in GRPO (2402.03300).
    """
    ratio = jnp.exp(policy - behaviour)
    bounded = jnp.clip(ratio, 1.0 - config.clip, 1.0 + config.clip)
    loss = -jnp.minimum(ratio * advantages, bounded * advantages)
    clipped = (bounded * advantages < ratio * advantages).astype(loss.dtype)
    return PolicyTerms(loss, _k3(start - policy), ratio, clipped, _k3(policy - behaviour))


def _k3(log_ratio: Array) -> Array:
    # exp(x) - 1 - x by `expm1`, because near 0 the plain difference is all rounding.
    return jnp.expm1(log_ratio) - log_ratio


def metric_at_reference(config: DpoConfig | KtoConfig) -> tuple[str, float] | None:
    """(name, value) of a metric of a policy that equals its reference, to check the first step by.

    None for `nll`, which has no reference.
    """
    # The loss where it is the same for every example: with h = 0, ln 2 (label smoothing does not
    # change it, because both of its terms are ln 2), IPO's constant, and KTO's 1/2.
    if isinstance(config, KtoConfig):
        return "preference_loss", 0.5
    if config.offset:
        return "margin", 0.0
    known = {"sigmoid": math.log(2.0), "ipo": (1.0 / (2.0 * config.beta)) ** 2}
    return ("preference_loss", known[config.loss]) if config.loss in known else None


def _normalised(config: PreferenceLoss | DpoConfig) -> bool:
    return config.length_normalised or config.loss == "ipo"


def _sides(x: Array) -> tuple[Array, Array]:
    return x[..., 0], x[..., 1]
