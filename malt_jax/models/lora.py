"""LoRA adapters: a small trainable pytree beside the frozen base (Hu et al., arXiv 2106.09685)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@dataclass(frozen=True)
class Adapter:
    """One role's low-rank update: `W + scale * a @ b` for each targeted projection.

    `layers`: a list with one `{target: {"a": [in, r], "b": [r, out]}}` a layer, or, for stacked
    layers, one such dictionary whose leaves have a leading layer axis. All adapters of a run have
    the same structure and scale, so passing another one to a compiled program compiles nothing.
    """

    layers: Any
    scale: float


jax.tree_util.register_dataclass(Adapter, data_fields=["layers"], meta_fields=["scale"])


def lora_delta(
    x: Float[Array, "B T i"], pair: dict[str, Array], scale: float
) -> Float[Array, "B T o"]:
    """The adapter's contribution to one projection, through the rank: never forms `a @ b`."""
    a, b = pair["a"].astype(x.dtype), pair["b"].astype(x.dtype)
    return (x @ a) @ b * jnp.asarray(scale, x.dtype)
