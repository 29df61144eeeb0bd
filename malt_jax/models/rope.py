"""Rotary position embedding, with the context extensions of the supported families."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from malt_jax.models.spec import Rope

Angles = tuple[Float[Array, "B T 1 half"], Float[Array, "B T 1 half"]]
"""Cosine and sine of the angle by which each pair of channels turns at each position."""


def inverse_frequencies(rope: Rope, head_dim: int) -> np.ndarray:
    """Radians per position for each rotated pair of channels, `[rotated channels / 2]`, float32.

    For the kinds that depend on the length of a sequence, up to `original_context` tokens; beyond,
    see `rotation`.
    """
    # In NumPy, on the host: the frequencies become constants of the program.
    width = int(head_dim * rope.rotary_share)
    exponents = np.arange(0, width, 2, dtype=np.float32) / width
    inverse = (1.0 / rope.theta**exponents).astype(np.float32)
    if rope.kind in ("default", "dynamic"):
        return inverse
    if rope.kind == "linear":
        return (inverse / rope.factor).astype(np.float32)
    if rope.kind == "longrope":
        return (inverse / np.asarray(rope.short_factors, np.float32)).astype(np.float32)
    if rope.kind == "llama3":
        kept = _llama3_ramp(rope, inverse)
    elif rope.kind == "yarn":
        kept = _yarn_ramp(rope, width)
    else:
        raise ValueError(f"rope kind {rope.kind!r}")
    return ((1 - kept) * inverse / rope.factor + kept * inverse).astype(np.float32)


def _llama3_ramp(rope: Rope, inverse: np.ndarray) -> np.ndarray:
    """1 where a frequency is kept, 0 where it is stretched, as in the released Llama 3.1 code.

    Wavelengths longer than `original_context / low_freq_factor` are stretched, shorter than
    `original_context / high_freq_factor` are kept, the rest interpolate.
    """
    wavelengths = 2 * math.pi / inverse
    # Turns within the original context, scaled so that 0 is `low_freq_factor` turns or fewer
    # (stretched) and 1 is `high_freq_factor` or more (kept).
    ramp = (rope.original_context / wavelengths - rope.low_freq_factor) / (
        rope.high_freq_factor - rope.low_freq_factor
    )
    return np.clip(ramp, 0.0, 1.0)


def _yarn_ramp(rope: Rope, width: int) -> np.ndarray:
    """The same for YaRN, whose ramp is linear in the index of the pair (arXiv 2309.00071, 3.2)."""

    def pair_of(turns: float) -> float:
        """The pair, counted in fractions, that turns so often within the original context."""
        wavelength = rope.original_context / (turns * 2 * math.pi)
        return width * math.log(wavelength) / (2 * math.log(rope.theta))

    first, last = pair_of(rope.beta_fast), pair_of(rope.beta_slow)
    if rope.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, width - 1)
    ramp = (np.arange(width // 2, dtype=np.float32) - first) / max(last - first, 0.001)
    return 1 - np.clip(ramp, 0.0, 1.0)


def rotation(positions: Int[Array, "B T"], rope: Rope, head_dim: int) -> Angles:
    """The angles of every position, in float32 whatever the model's dtype.

    In bfloat16, whose integers are exact up to 256, positions further on would coincide.
    """
    inverse: Any = inverse_frequencies(rope, head_dim)[None, None, None]
    if rope.kind in ("dynamic", "longrope"):
        inverse = _by_length(positions, rope, inverse)
    angles = positions[:, :, None, None].astype(jnp.float32) * inverse
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    if rope.magnitude != 1.0:
        cos, sin = cos * rope.magnitude, sin * rope.magnitude
    return cos, sin


def _by_length(
    positions: Int[Array, "B T"], rope: Rope, inverse: np.ndarray
) -> Float[Array, "B 1 1 half"]:
    """The frequencies of rows that may be longer than the original context.

    A row's length is its largest position plus one. Cached keys keep the rotation they were stored
    with, so the sampler never exceeds `ModelSpec.context`, within which nothing changes here.
    """
    length = (jnp.max(positions, axis=1)[:, None, None, None] + 1).astype(jnp.float32)
    if rope.kind == "longrope":
        factors = np.asarray(rope.long_factors) / np.asarray(rope.short_factors)
        longer = jnp.asarray(inverse / factors, jnp.float32)
    else:
        # theta grows by `growth`, and so the frequency of pair i falls by growth ** (2 i / width).
        width = 2 * inverse.shape[-1]
        growth = rope.factor * length / rope.original_context - (rope.factor - 1)
        exponents = np.arange(0, width, 2, dtype=np.float32) / (width - 2)
        longer = jnp.asarray(inverse) * growth ** -jnp.asarray(exponents)[None, None, None]
    return jnp.where(length > rope.original_context, longer, inverse)


def rotate(
    x: Float[Array, "B T N h"], cos: Float[Array, "B T 1 half"], sin: Float[Array, "B T 1 half"]
) -> Float[Array, "B T N h"]:
    """Rotate the channel pairs (i, i + half), Hugging Face's half-split layout.

    Channels beyond those that the angles are for stay as they are.
    """
    width = 2 * cos.shape[-1]
    if width < x.shape[-1]:
        return jnp.concatenate([rotate(x[..., :width], cos, sin), x[..., width:]], axis=-1)
    # Neighbouring pairs (2i, 2i + 1) would need other channel orders in query and key kernels.
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)
