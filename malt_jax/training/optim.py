"""The optimiser: Optax transformations, with the learning rate as an argument of the step.

The rate is computed on the host, so roles whose step counts differ share one compiled program.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import optax
from jaxtyping import Array

from malt_jax.config.training import OptimConfig


def learning_rates(config: OptimConfig, steps: int) -> np.ndarray:
    """The rate of each step, float32 [steps]: a linear rise to the peak, then the schedule."""
    warmup = min(round(config.warmup * steps), max(steps - 1, 0))
    step = np.arange(steps)
    rise = (step + 1) / max(warmup, 1)
    past = (step - warmup) / max(steps - 1 - warmup, 1)
    shape = {
        "constant": np.ones(steps),
        "linear": 1.0 - past,
        "cosine": 0.5 * (1.0 + np.cos(np.pi * np.clip(past, 0.0, 1.0))),
    }[config.schedule]
    fall = shape if config.schedule == "constant" else config.final + (1.0 - config.final) * shape
    return (config.learning_rate * np.where(step < warmup, rise, fall)).astype(np.float32)


def transformation(config: OptimConfig) -> optax.GradientTransformation:
    """Gradients -> the direction to go against; the step multiplies it by the learning rate."""
    chain = [optax.clip_by_global_norm(config.clip)] if config.clip else []
    if config.name == "adamw":
        chain.append(optax.scale_by_adam(config.beta1, config.beta2))
    elif config.name == "lion":
        chain.append(optax.scale_by_lion(config.beta1, config.beta2))
    else:
        chain += [optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0)]
    if config.weight_decay:
        chain.append(optax.add_decayed_weights(config.weight_decay, mask=_decays))
    return optax.chain(*chain)


def update(
    config: OptimConfig, gradients: Any, moments: Any, params: Any, learning_rate: Array
) -> tuple[Any, Any]:
    """(new parameters, new moments) of one step."""
    # Optax mixes Python floats with integer step counts, which strict promotion forbids.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        direction, moments = transformation(config).update(gradients, moments, params)
    return jax.tree.map(lambda w, d: w - learning_rate * d, params, direction), moments


def _decays(params: Any) -> Any:
    """True for matrices; norms' weights and biases are left alone."""

    def decays(path: tuple, _: Any) -> bool:
        names = {str(getattr(key, "key", getattr(key, "name", ""))) for key in path}
        return not names & {"weight", "bias"}

    return jax.tree_util.tree_map_with_path(decays, params)
