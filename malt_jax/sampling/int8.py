"""Weight-only int8: every projection's kernel rounded, with one scale per output channel.

Embedding, output head, norms and biases are not rounded. A product is taken with the integers and
scaled afterwards, so that no kernel is ever restored in full. `to_int8` also rounds the caches.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from malt_jax.models.quantized import round_to_int8


def to_int8(x: Float[Array, "..."], axis: int) -> tuple[Int[Array, "..."], Float[Array, "..."]]:
    """`round_to_int8` with scales that have no axis of size 1, as caches and kernels here do."""
    values, scale = round_to_int8(x, axis)
    return values, jnp.squeeze(scale, axis)


@jax.tree_util.register_dataclass
@dataclass(eq=False)
class Int8Kernel:
    """An int8 kernel `[i, o]` in the place of a float one: it supports `x @ kernel[...]`."""

    values: Any  # int8 [i, o]; not checked, since JAX builds the class from placeholders too
    scale: Any  # float32 [o]

    def __getitem__(self, index: Any) -> Int8Kernel:
        assert index is Ellipsis
        return self

    def __rmatmul__(self, x: Float[Array, "*b i"]) -> Float[Array, "*b o"]:
        y = jnp.matmul(x, self.values.astype(x.dtype), preferred_element_type=jnp.float32)
        shape = (1,) * (y.ndim - 1) + self.scale.shape
        return (y * self.scale.reshape(shape)).astype(x.dtype)


def quantise_kernels(params: Any) -> Any:
    """The parameters with each layer's kernels in int8; other arrays are shared, not copied."""
    round_columns = jax.jit(partial(to_int8, axis=0))

    def convert(path: Any, x: Array) -> Any:
        if x.ndim != 2 or "kernel" not in jax.tree_util.keystr(path):
            return x
        return Int8Kernel(*round_columns(x))

    return jax.tree_util.tree_map_with_path(convert, params)
