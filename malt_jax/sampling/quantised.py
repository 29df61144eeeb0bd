"""Weight-only int8: every projection's kernel rounded, with one scale an output channel.

Embedding, head, norms and biases stay as they are. The product is taken with the rounded integers
and scaled after it, so no kernel is ever restored in full.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


@jax.tree_util.register_pytree_node_class
class Int8Kernel:
    """Stands where a kernel `[i, o]` does: `x @ kernel` and `kernel[...]`."""

    def __init__(self, values: Int[Array, "i o"], scale: Float[Array, "o"]):
        self.values, self.scale = values, scale

    def __getitem__(self, index: Any) -> Int8Kernel:
        assert index is Ellipsis
        return self

    def __rmatmul__(self, x: Float[Array, "*b i"]) -> Float[Array, "*b o"]:
        y = jnp.matmul(x, self.values.astype(x.dtype), preferred_element_type=jnp.float32)
        shape = (1,) * (y.ndim - 1) + self.scale.shape
        return (y * self.scale.reshape(shape)).astype(x.dtype)

    def tree_flatten(self):
        return (self.values, self.scale), None

    @classmethod
    def tree_unflatten(cls, _, children):
        kernel = object.__new__(cls)
        kernel.values, kernel.scale = children
        return kernel


def quantise_kernels(params: Any) -> Any:
    """The parameters with each layer's kernels in int8; the others are shared, not copied."""

    def convert(path: Any, x: Array) -> Any:
        if x.ndim != 2 or "kernel" not in jax.tree_util.keystr(path):
            return x
        return Int8Kernel(*_rounded(x))

    return jax.tree_util.tree_map_with_path(convert, params)


@jax.jit
def _rounded(kernel: Float[Array, "i o"]) -> tuple[Int[Array, "i o"], Float[Array, "o"]]:
    kernel = kernel.astype(jnp.float32)
    scale = jnp.maximum(jnp.max(jnp.abs(kernel), axis=0), 1e-30) / 127.0
    return jnp.round(kernel / scale[None]).astype(jnp.int8), scale
