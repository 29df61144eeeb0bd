"""The optimiser: Optax transformations, with the learning rate as an argument of the step.

The rate is computed on the host, so roles whose step counts differ share one compiled program.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import optax
from jaxtyping import Array

from malt_jax.config.training import OptimConfig


@dataclass(frozen=True)
class Optimiser:
    """The part of an `OptimConfig` that is compiled in; the learning rate is an argument."""

    name: str
    weight_decay: float
    beta1: float
    beta2: float
    clip: float

    @classmethod
    def of(cls, config: OptimConfig) -> Optimiser:
        return cls(config.name, config.weight_decay, config.beta1, config.beta2, config.clip)


def learning_rates(config: OptimConfig, steps: int) -> np.ndarray:
    """The learning rate of each step, float32 `[steps]`: a linear rise to the peak, then a decay.

    The rise ends at the peak in the last warm-up step. The decay would reach `final` one step after
    the last one, so that with a `final` of 0 the last batch is learnt as well.
    """
    # At most steps - 1, so that the decay has at least one step, which stays at the peak.
    warmup = min(round(config.warmup * steps), max(steps - 1, 0))
    step = np.arange(steps)
    rise = (step + 1) / max(warmup, 1)
    past = (step - warmup) / max(steps - warmup, 1)
    decay = {
        "constant": np.ones(steps),
        "linear": 1.0 - past,
        "cosine": 0.5 * (1.0 + np.cos(np.pi * np.clip(past, 0.0, 1.0))),
    }[config.schedule]
    if config.schedule != "constant":
        decay = config.final + (1.0 - config.final) * decay
    return (config.learning_rate * np.where(step < warmup, rise, decay)).astype(np.float32)


def transformation(config: Optimiser) -> optax.GradientTransformation:
    """Gradients -> the direction to go against; the step multiplies it by the learning rate."""
    # The order matters: the raw gradient is clipped, then scaled by the moments, and the decay is
    # added last, so the moments never see it (decoupled weight decay).
    chain = [optax.clip_by_global_norm(config.clip)] if config.clip else []
    if config.name == "adamw":
        chain.append(optax.scale_by_adam(config.beta1, config.beta2))
    elif config.name == "lion":
        chain.append(optax.scale_by_lion(config.beta1, config.beta2))
    else:
        # Adafactor: factored second moments, then its own clipping of each array's update.
        chain += [optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0)]
    if config.weight_decay:
        chain.append(optax.add_decayed_weights(config.weight_decay, mask=_decays))
    return optax.chain(*chain)


def update(
    config: Optimiser, gradients: Any, moments: Any, params: Any, learning_rate: Array
) -> tuple[Any, Any]:
    """(new parameters, new moments) of one step."""
    # Optax mixes Python floats with integer step counts, which strict promotion forbids.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        direction, moments = transformation(config).update(gradients, moments, params)
    # The decay is part of the direction, so it is multiplied by the learning rate as well.
    return jax.tree.map(lambda w, d: w - learning_rate * d, params, direction), moments


def _decays(params: Any) -> Any:
    """True for matrices; norms' weights and biases are left alone."""

    def decays(path: tuple, _: Any) -> bool:
        # By name and not by number of axes: stacked layers hold their norms' weights as a matrix.
        names = {str(getattr(key, "key", getattr(key, "name", ""))) for key in path}
        return not names & {"weight", "bias"}

    return jax.tree_util.tree_map_with_path(decays, params)
