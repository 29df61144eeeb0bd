"""What is minimised: SFT's token mean, and the preference losses."""

from __future__ import annotations

import math
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
    return -jnp.sum(logprobs * weights) / tokens


class Preference(NamedTuple):
    """Per-pair quantities; rewards are beta times the log-ratio of policy to reference."""

    loss: Float[Array, "*P"]
    nll: Float[Array, "*P"]
    """Negative log-likelihood a token of the chosen completion."""
    chosen_reward: Float[Array, "*P"]
    rejected_reward: Float[Array, "*P"]


def preference_loss(
    policy: Float[Array, "*P 2"],
    reference: Float[Array, "*P 2"],
    lengths: Float[Array, "*P 2"],
    config: DpoConfig,
) -> Preference:
    """Losses of pairs from summed log-probabilities, the chosen completion first.

    With h = (log-ratio of the chosen) - (log-ratio of the rejected):
    sigmoid: -log sigmoid(beta h) (Rafailov et al., arXiv 2305.18290, equation 7);
    with label smoothing e: -(1 - e) log sigmoid(beta h) - e log sigmoid(-beta h), conservative DPO
    (same, and Mitchell, "A note on DPO with noisy preferences and relationship to IPO", 2023);
    length-normalised: each log-ratio divided by its completion's tokens (Tulu 3, arXiv 2411.15124,
    equation 6); ipo: (h - 1 / (2 beta))^2 (Azar et al., arXiv 2310.12036, equation 17), with
    log-ratios a token, as its authors ran it. `nll` is RPO's other term (arXiv 2404.19733,
    equation 1), which the caller adds with its weight; with the loss `nll` it is the whole loss.
    """
    ratios = policy - reference
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
        loss = -(1.0 - smooth) * jax.nn.log_sigmoid(config.beta * gap)
        if smooth:
            loss = loss - smooth * jax.nn.log_sigmoid(-config.beta * gap)
    chosen, rejected = _sides(ratios)
    return Preference(loss, nll, config.beta * chosen, config.beta * rejected)


def loss_at_reference(config: DpoConfig) -> float | None:
    """The preference loss of a policy that equals its reference; None where it is the pair's."""
    known = {"sigmoid": math.log(2.0), "ipo": (1.0 / (2.0 * config.beta)) ** 2}
    return known.get(config.loss)


def _normalised(config: DpoConfig) -> bool:
    return config.length_normalised or config.loss == "ipo"


def _sides(x: Array) -> tuple[Array, Array]:
    return x[..., 0], x[..., 1]
