"""Rotary position embedding, with the context extensions of the supported families."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from malt_jax.models.spec import Rope

Angles = tuple[Float[Array, "B T 1 half"], Float[Array, "B T 1 half"]]
"""Cosine and sine of the angle by which each pair of channels turns at each position."""


def inverse_frequencies(rope: Rope, head_dim: int) -> np.ndarray:
    """Radians per position for each pair of channels, `[head_dim / 2]`, float32.

    `llama3` follows the released Llama 3.1 code: wavelengths longer than
    `original_context / low_freq_factor` are stretched by `factor`, shorter than
    `original_context / high_freq_factor` are kept, the rest interpolate.
    """
    # In NumPy, on the host: the frequencies become constants of the program.
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / head_dim
    inverse = (1.0 / rope.theta**exponents).astype(np.float32)
    if rope.kind == "default":
        return inverse
    if rope.kind == "linear":
        return (inverse / rope.factor).astype(np.float32)
    if rope.kind == "llama3":
        wavelengths = 2 * math.pi / inverse
        # Turns within the original context, scaled so that 0 is `low_freq_factor` turns or fewer
        # (stretched) and 1 is `high_freq_factor` or more (kept).
        ramp = (rope.original_context / wavelengths - rope.low_freq_factor) / (
            rope.high_freq_factor - rope.low_freq_factor
        )
        ramp = np.clip(ramp, 0.0, 1.0)
        return ((1 - ramp) * inverse / rope.factor + ramp * inverse).astype(np.float32)
    raise ValueError(f"rope kind {rope.kind!r}")


def rotation(positions: Int[Array, "B T"], rope: Rope, head_dim: int) -> Angles:
    """The angles of every position, in float32 whatever the model's dtype.

    In bfloat16, whose integers are exact up to 256, positions further on would coincide.
    """
    inverse = inverse_frequencies(rope, head_dim)
    angles = positions[:, :, None, None].astype(jnp.float32) * inverse[None, None, None]
    return jnp.cos(angles), jnp.sin(angles)


def rotate(
    x: Float[Array, "B T N h"], cos: Float[Array, "B T 1 half"], sin: Float[Array, "B T 1 half"]
) -> Float[Array, "B T N h"]:
    """Rotate the channel pairs (i, i + h/2), Hugging Face's half-split layout."""
    # Neighbouring pairs (2i, 2i + 1) would need other channel orders in query and key kernels.
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)
