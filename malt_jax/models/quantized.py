"""A frozen base in int8: matrices of integers with a scale per output channel, and their product.

Integers of 8 bits are exact in bfloat16, so bfloat16 activations are multiplied with them as they
are. For float32, which CPUs compute in, that would be slower than a product of two float matrices:
CPUs are fast where both sides are integers. So each activation is rounded to 15 bits, written as
two digits of 8, and both digits are multiplied in one product of integers. The error of the
activations is then a small part of that of the matrices. With one digit it would be about as large,
and larger where activations have outliers.

The gradient with respect to the activations is that of the product with the dequantised matrix, as
if they had not been rounded (the straight-through estimator, arXiv 1308.3432). What it is made of,
the gradient of the result, is rounded in the same way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from malt_jax.models.matmul import PRODUCT

LOW = 254.0
"""The low digit of an activation in units of the high one: what rounding leaves is at most a half,
which becomes 127."""
TABLES = (("embed",), ("head",))
"""The paths of the matrices whose rows, one per token, have a scale each."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class QuantizedMatrix:
    """`values * scale` where the decoder expects a float matrix, or one per layer or expert."""

    # Not checked, since JAX builds the class from placeholders and shardings too.
    values: Any
    """int8 [*b i o]"""
    scale: Any
    """float32 [*b 1 o], or [V 1] for an embedding table or a head"""

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    @property
    def T(self) -> QuantizedMatrix:
        return self._each(lambda x: x.T)

    def __getitem__(self, index: Any) -> QuantizedMatrix:
        return self if index is Ellipsis else self._each(lambda x: x[index])

    def __rmatmul__(self, x: Float[Array, "*b i"]) -> Float[Array, "*b o"]:
        # The name is for rematerialisation, which keeps results of products.
        return checkpoint_name(product(x, self).astype(x.dtype), PRODUCT)

    def rows(self, index: Int[Array, "*b"], dtype: Any) -> Float[Array, "*b D"]:
        """Rows of an embedding table."""
        return self[index].dequantized(dtype)

    def dequantized(self, dtype: Any) -> Float[Array, "..."]:
        """The float matrix that this one stands for."""
        return (self.values.astype(jnp.float32) * self.scale).astype(dtype)

    def _each(self, function: Callable[[Array], Array]) -> QuantizedMatrix:
        return replace(self, values=function(self.values), scale=function(self.scale))


def dequantized(matrix: Array | QuantizedMatrix, dtype: Any) -> Float[Array, "..."]:
    """A parameter as a float array, which it is already where nothing is quantised."""
    return matrix.dequantized(dtype) if isinstance(matrix, QuantizedMatrix) else matrix


def is_quantized(path: tuple[Any, ...]) -> bool:
    """Whether a parameter is rounded: norms, biases and routers of experts are not."""
    return path in TABLES or (path[-1] == "kernel" and path[-2] != "router")


def quantized(path: tuple[Any, ...], value: Float[Array, "..."]) -> QuantizedMatrix:
    """The matrix at `path` in int8."""
    return QuantizedMatrix(*round_to_int8(value, -1 if path in TABLES else -2))


def with_int8_kernels(params: nnx.State) -> nnx.State:
    """The weights with all kernels in int8; the other arrays, tables too, are those of `params`."""
    rounded = jax.jit(partial(round_to_int8, axis=-2))
    flat = dict(nnx.to_flat_state(params))
    for path, variable in flat.items():
        if is_quantized(path) and path not in TABLES:
            flat[path] = variable.replace(QuantizedMatrix(*rounded(variable.get_value())))
    return nnx.from_flat_state(flat)


def round_to_int8(
    x: Float[Array, "..."], axis: int
) -> tuple[Int[Array, "..."], Float[Array, "..."]]:
    """Symmetric int8 values, and a scale per vector along `axis`, which is kept with size 1.

    The largest magnitude becomes 127.
    """
    scale = scale_of(x, axis)
    return jnp.round(x.astype(jnp.float32) / scale).astype(jnp.int8), scale


def scale_of(x: Float[Array, "..."], axis: int) -> Float[Array, "..."]:
    """What the largest magnitude along `axis` is divided by to become 127."""
    largest = jnp.max(jnp.abs(x.astype(jnp.float32)), axis=axis, keepdims=True)
    return jnp.maximum(largest, 1e-30) / 127.0


def weights_dtype(params: Any) -> Any:
    """The dtype that a model computes in, whatever its matrices are stored as."""
    return params["norm"]["weight"][...].dtype


def is_rounded(params: Any) -> bool:
    """Whether a model's matrices are in int8."""
    return any(leaf.dtype == jnp.int8 for leaf in jax.tree.leaves(params))


@jax.custom_vjp
def product(x: Float[Array, "*b i"], matrix: QuantizedMatrix) -> Float[Array, "*b o"]:
    """`x @ matrix` in float32."""
    # Scaled afterwards, so that what is read from memory, and multiplied, are integers.
    return _times_integers(x, matrix.values) * _along(x, matrix.scale)


def _forward(x: Array, matrix: QuantizedMatrix) -> tuple[Array, Any]:
    # The barrier keeps the result in memory: fused into what uses it, XLA would keep its digits,
    # which are twice as large. An empty array carries the dtype of x.
    y = jax.lax.optimization_barrier(product(x, matrix))
    return y, (matrix, jnp.zeros((0,), x.dtype))


def _backward(saved: Any, dy: Array) -> tuple[Array, None]:
    matrix, like = saved
    # dx = (dy * scale) @ values^T: scaled before, for the same reason, and in the same digits.
    scaled = (dy * _along(dy, matrix.scale)).astype(like.dtype)
    dx = _times_integers(scaled, matrix.values.T)
    return dx.astype(like.dtype), None  # the matrix is frozen


product.defvjp(_forward, _backward)


def _times_integers(x: Float[Array, "*b i"], values: Int[Array, "i o"]) -> Float[Array, "*b o"]:
    """`x @ values` in float32, for int8 values."""
    if x.dtype != jnp.float32:
        return jnp.matmul(x, values.astype(x.dtype), preferred_element_type=jnp.float32)
    token_scale = scale_of(x, -1)
    high = jnp.round(x / token_scale)
    low = jnp.round((x / token_scale - high) * LOW)
    digits = jnp.stack([high, low]).astype(jnp.int8)
    y = jnp.matmul(digits, values, preferred_element_type=jnp.int32).astype(jnp.float32)
    return (y[0] + y[1] / LOW) * token_scale


def _along(x: Array, scale: Float[Array, "1 o"]) -> Float[Array, "..."]:
    """A scale per output channel, with the leading axes of `x`."""
    return scale.reshape((1,) * (x.ndim - 1) + (-1,))
