"""The declaration of a parameter, the linear map made of two, and the activation of a gate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from malt_jax.models.matmul import matmul
from malt_jax.models.quantized import QuantizedMatrix
from malt_jax.models.spec import ModelSpec


def param(
    rngs: nnx.Rngs,
    init: nnx.Initializer,
    shape: tuple[int, ...],
    axes: tuple[str | None, ...],
    dtype: Any,
) -> nnx.Param:
    """The one declaration of a parameter: initialiser, shape, logical axes, dtype."""
    return nnx.Param(init(rngs.params(), shape, dtype), axes=axes)


def normal(fan_in: int) -> nnx.Initializer:
    return nnx.initializers.normal(fan_in**-0.5)


ZEROS, ONES = nnx.initializers.zeros, nnx.initializers.ones


class Linear(nnx.Module):
    """`x @ kernel + bias`."""

    def __init__(
        self,
        d_in: int,
        d_out: int,
        axes: tuple[str, str | None],
        *,
        bias: bool = False,
        rngs: nnx.Rngs,
        dtype: Any,
    ):
        self.kernel = param(rngs, normal(d_in), (d_in, d_out), axes, dtype)
        self.bias = param(rngs, ZEROS, (d_out,), (axes[1],), dtype) if bias else None

    def __call__(self, x: Float[Array, "B T i"]) -> Float[Array, "B T o"]:
        # The bias gets its other axes explicitly: the tests forbid implicit rank promotion.
        kernel = self.kernel[...]
        y = x @ kernel if isinstance(kernel, QuantizedMatrix) else matmul(x, kernel)
        return y if self.bias is None else y + self.bias[...][None, None]


def activation(spec: ModelSpec) -> Callable[[Array], Array]:
    """What the gate of an MLP goes through before it is multiplied by the up-projection."""
    # `jax.nn.gelu` is the tanh approximation by default, which is what `gelu_tanh` names.
    function = jax.nn.silu if spec.activation == "silu" else jax.nn.gelu

    # Computed in float32 and rounded once, as PyTorch does. JAX rounds between the operations of
    # an activation, which makes its error in bfloat16 half as large again (silu). Without
    # `checkpoint` the backward pass would keep the float32 copy of the gate.
    @jax.checkpoint
    def rounded_once(gate: Array) -> Array:
        return function(gate.astype(jnp.float32)).astype(gate.dtype)

    return rounded_once
