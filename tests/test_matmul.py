"""Products in bfloat16 against the same numbers in float32, values and gradients."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from malt_jax.models.lora import lora_delta
from malt_jax.models.matmul import (
    blocked_matmul,
    by_transpose,
    float32_matmul,
    matmul,
    small_products,
)
from malt_jax.training.remat import transform


def numbers(*shape: int, dtype=jnp.bfloat16):
    return jnp.asarray(np.random.default_rng(len(shape)).standard_normal(shape), dtype)


def close(found, expected, share: float = 0.01):
    """Equal up to a share of the largest number: bfloat16 has 8 bits."""
    found, expected = (np.asarray(x, np.float32) for x in (found, expected))
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= share * np.abs(expected).max()


def of_loop(x, w):
    return by_transpose(w.T)(x)


@pytest.mark.parametrize("product", [matmul, float32_matmul, of_loop])
def test_values_and_gradients_are_those_of_float32(product):
    x, w = numbers(2, 24, 40), numbers(40, 56)

    def loss(x, w):
        y = product(x, w)
        return jnp.sum(jnp.sin(y.astype(jnp.float32))), y

    (_, y), grads = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(x, w)
    wide = tuple(a.astype(jnp.float32) for a in (x, w))
    (_, expected), exact = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(*wide)
    assert y.dtype == (jnp.bfloat16 if product is matmul else jnp.float32)
    close(y, expected)
    for found, gradient in zip(grads, exact, strict=True):
        assert found.dtype == jnp.bfloat16
        close(found, gradient, 0.05)  # the cosine of a rounded product


def test_a_loop_with_branches_copies_its_matrix_once():
    rows, head = numbers(6, 8, 16), numbers(48, 16)

    def total(rows, head, product):
        def step(x):
            some = lambda: jax.value_and_grad(lambda x: jnp.sum(jnp.sin(product(x))))(x)  # noqa: E731
            return jax.lax.cond(jnp.any(x > 0), some, lambda: (jnp.float32(0), jnp.zeros_like(x)))

        return jax.lax.map(step, rows)

    prepared = jax.jit(lambda rows, head: total(rows, head, by_transpose(head)))
    plain = jax.jit(lambda rows, head: total(rows, head, lambda x: float32_matmul(x, head.T)))
    for found, expected in zip(prepared(rows, head), plain(rows, head), strict=True):
        np.testing.assert_array_equal(found, expected)
    assert callers_of_copies(prepared, rows, head) == {"ENTRY"}
    # Else the copy belongs to a branch, and is made again in every iteration.
    assert callers_of_copies(plain, rows, head) == {"region"}


def callers_of_copies(function, *args) -> set[str]:
    """The kinds of computations, in compiled form, that copy a matrix [16, 48] into its order."""
    computations = function.lower(*args).compile().as_text().split("\n\n")
    copying = [c for c in computations if "bf16[16,48]{1,0} copy(" in c]
    names = [re.match(r"%([\w.]+)", c)[1] for c in copying]
    callers = [c for c in computations for name in names if f"calls=%{name}" in c]
    return {re.match(r"%?([A-Za-z]+)", caller)[1] for caller in callers}


def test_blocks_are_the_product_with_the_head_split():
    x, head = numbers(5, 16), numbers(12, 16)
    close(blocked_matmul(x, head.reshape(3, 4, 16)).reshape(5, 12), float32_matmul(x, head.T), 1e-6)


def test_small_products_read_the_second_side_in_the_dtype_of_the_first():
    q, k = numbers(2, 3, 8), numbers(2, 8, 7, dtype=jnp.float32)
    found = small_products("bth,bhl->btl", q, k)
    assert found.dtype == jnp.float32
    close(found, jnp.einsum("bth,bhl->btl", q.astype(jnp.float32), k))


@pytest.mark.parametrize(("d_in", "d_out"), [(520, 40), (40, 520), (520, 520)])
def test_an_adapter_has_gradients_in_bfloat16_at_any_width(d_in, d_out):
    x = numbers(2, 6, d_in)
    pair = {"a": numbers(d_in, 4, dtype=jnp.float32), "b": numbers(4, d_out, dtype=jnp.float32)}

    def loss(pair, x):
        return jnp.sum(jnp.square(lora_delta(x, pair, 0.1).astype(jnp.float32)))

    found = jax.jit(jax.grad(loss))(pair, x)
    exact = jax.grad(loss)(pair, x.astype(jnp.float32))
    for side in ("a", "b"):
        assert found[side].dtype == jnp.float32
        close(found[side], exact[side], 0.05)


def test_rematerialisation_keeps_the_results_of_products():
    x, w = numbers(4, 16), numbers(16, 16)

    def products(policy: str) -> int:
        around = transform(policy)
        assert around is not None
        layer = around(lambda x: jnp.sum(jnp.tanh(matmul(x, w).astype(jnp.float32))))
        return str(jax.make_jaxpr(jax.grad(layer))(x)).count("cond[")

    assert products("dots") == products("full") - 1
