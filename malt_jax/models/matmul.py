"""Products in bfloat16, in the form that each platform is fast at.

CPUs have instructions that multiply bfloat16 and sum in float32. XLA uses them for large products
whose result is float32 and whose matrix lies in memory in the order of its axes. With a bfloat16
result, with a transposed matrix, or in many small products, bfloat16 takes two to six times as
long. Accelerators round and transpose within the product.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array, Float

PRODUCT = "product"
"""The name of a product's result in `jax.checkpoint`."""


def matmul(x: Float[Array, "*b i"], w: Float[Array, "i o"]) -> Float[Array, "*b o"]:
    """`x @ w` in the dtype of both."""
    if not _in_bfloat16(x, w):
        return x @ w
    return checkpoint_name(_product(x, w, x.dtype), PRODUCT)


def float32_matmul(x: Float[Array, "*b i"], w: Float[Array, "i o"]) -> Float[Array, "*b o"]:
    """`x @ w` in float32, which comes out of the product itself."""
    if not _in_bfloat16(x, w):
        return jnp.matmul(x, w, preferred_element_type=jnp.float32)
    return _product(x, w, jnp.dtype(jnp.float32))


def by_transpose(w: Float[Array, "o i"]) -> Callable[[Float[Array, "*b i"]], Float[Array, "*b o"]]:
    """`x @ w.T` in float32 as a function of x, for a loop on a CPU.

    The copy of the transpose is made here. Within the loop, XLA would make it in every iteration
    that has a branch.
    """
    if w.dtype != jnp.bfloat16:
        return lambda x: float32_matmul(x, w.T)
    transposed = _in_order(w.T)
    return lambda x: _by_transpose(x, w, transposed)


def blocked_matmul(x: Float[Array, "R i"], blocks: Float[Array, "n w i"]) -> Float[Array, "R n w"]:
    """The products with each block's transpose, in float32."""

    def as_they_are(x: Array, blocks: Array) -> Array:
        return jnp.einsum("ri,nwi->rnw", x, blocks, preferred_element_type=jnp.float32)

    def as_one(x: Array, blocks: Array) -> Array:
        matrix = blocks.reshape(-1, blocks.shape[-1]).T
        return float32_matmul(x, matrix).reshape(-1, *blocks.shape[:2])

    if not _in_bfloat16(x, blocks):
        return as_they_are(x, blocks)
    return jax.lax.platform_dependent(x, blocks, cpu=as_one, default=as_they_are)


def small_products(equation: str, x: Float[Array, "..."], y: Array) -> Float[Array, "..."]:
    """The many small products of attention, in float32; `y` may be integers."""

    def in_float32(x: Array, y: Array) -> Array:
        return jnp.einsum(equation, x.astype(jnp.float32), y.astype(jnp.float32))

    def as_they_are(x: Array, y: Array) -> Array:
        return jnp.einsum(equation, x, y.astype(x.dtype), preferred_element_type=jnp.float32)

    if x.dtype == jnp.float32:
        return as_they_are(x, y)
    return jax.lax.platform_dependent(x, y, cpu=in_float32, default=as_they_are)


def _in_bfloat16(x: Array, w: Array) -> bool:
    return x.dtype == w.dtype == jnp.bfloat16


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _product(x: Float[Array, "*b i"], w: Float[Array, "i o"], dtype: Any) -> Float[Array, "*b o"]:
    """`x @ w` in `dtype`. Its gradients are products of the same kind."""

    def rounded_after(x: Array, w: Array) -> Array:
        return jnp.matmul(x, _in_order(w), preferred_element_type=jnp.float32).astype(dtype)

    def rounded_within(x: Array, w: Array) -> Array:
        return jnp.matmul(x, w, preferred_element_type=dtype)

    return jax.lax.platform_dependent(x, w, cpu=rounded_after, default=rounded_within)


def _forward(x: Array, w: Array, dtype: Any) -> tuple[Array, tuple[Array, Array]]:
    return _product(x, w, dtype), (x, w)


def _backward(dtype: Any, saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, w = saved
    # Without this, a float32 gradient of logits would be multiplied with the head in float32.
    dy = dy.astype(x.dtype)
    by_row = lambda x: x.reshape(-1, x.shape[-1])  # noqa: E731
    return _product(dy, w.T, x.dtype), _product(by_row(x).T, by_row(dy), w.dtype)


_product.defvjp(_forward, _backward)


@jax.custom_vjp
def _by_transpose(
    x: Float[Array, "*b i"], w: Float[Array, "o i"], transposed: Float[Array, "i o"]
) -> Float[Array, "*b o"]:
    """`x @ w.T` in float32, with the transpose as a copy. The gradient needs `w` as it is."""
    return jnp.matmul(x, transposed, preferred_element_type=jnp.float32)


def _by_transpose_forward(x: Array, w: Array, transposed: Array) -> tuple[Array, Any]:
    return _by_transpose(x, w, transposed), (x, w)


def _by_transpose_backward(saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array, None]:
    dx, dw = _backward(None, (saved[0], saved[1].T), dy)
    return dx, dw.T, None


_by_transpose.defvjp(_by_transpose_forward, _by_transpose_backward)


def _in_order(w: Float[Array, "i o"]) -> Float[Array, "i o"]:
    """`w` laid out in the order of its axes: a transposed matrix is copied, outside of loops."""
    if jax.sharding.get_abstract_mesh().size > 1:
        return w  # each device would first gather the whole matrix
    return with_layout_constraint(w, Layout(major_to_minor=(0, 1)))
