"""The losses: SFT's mean over completion tokens, and the preference losses of DPO."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from malt_jax.config.training import DpoConfig


def sft_loss(
    logprobs: Float[Array, "R C"], weights: Float[Array, "R C"], tokens: Float[Array, ""]
) -> Float[Array, ""]:
    """Negative log-likelihood of completion tokens (end token included), a mean over `tokens`.

    `tokens` counts the whole batch, of which this may be a part, so parts add up to its loss.
    """
    # Not by the part's own tokens: a mean of means gives the tokens of small parts more weight.
    return -jnp.sum(logprobs * weights) / tokens


@dataclass(frozen=True)
class PreferenceLoss:
    """The fields of a `DpoConfig` that the loss depends on."""

    loss: str
    beta: float
    label_smoothing: float
    length_normalised: bool
    nll_weight: float

    @classmethod
    def of(cls, config: DpoConfig) -> PreferenceLoss:
        return cls(**{name: getattr(config, name) for name in cls.__dataclass_fields__})


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
        # `log_sigmoid` is stable; the log of a sigmoid that underflows would be -infinity.
        loss = -(1.0 - smooth) * jax.nn.log_sigmoid(config.beta * gap)
        if smooth:
            loss = loss - smooth * jax.nn.log_sigmoid(-config.beta * gap)
    # Rewards stay sums over the completion, also where the loss takes log-ratios per token.
    chosen, rejected = _sides(ratios)
    return Preference(loss, nll, config.beta * chosen, config.beta * rejected)


def loss_at_reference(config: DpoConfig) -> float | None:
    """The preference loss of a policy that equals its reference; None if it depends on the pair."""
    # Here h = 0. Label smoothing does not change log 2, because both of its terms are log 2.
    known = {"sigmoid": math.log(2.0), "ipo": (1.0 / (2.0 * config.beta)) ** 2}
    return known.get(config.loss)


def _normalised(config: PreferenceLoss | DpoConfig) -> bool:
    return config.length_normalised or config.loss == "ipo"


def _sides(x: Array) -> tuple[Array, Array]:
    return x[..., 0], x[..., 1]
