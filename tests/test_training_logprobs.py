"""Chunked log-probabilities are the direct ones, and never hold logits of all tokens."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from malt_jax.training.logprobs import chunked_logprobs, slot_sums, token_logprobs
from training_model import SPEC, tiny_model

R, C, D, V = 2, 21, SPEC.d_model, SPEC.vocab


@pytest.fixture(scope="module")
def data():
    keys = jax.random.split(jax.random.key(0), 3)
    hidden = jax.random.normal(keys[0], (R, C, D))
    targets = jax.random.randint(keys[1], (R, C), 0, V)
    weights = jnp.asarray(np.arange(C)[None, :] < np.array([[17], [5]]), jnp.float32)
    return hidden, targets, weights


def _head(softcap):
    model = tiny_model(replace(SPEC, logit_softcap=softcap))
    return nnx.merge(model.graph, model.params)


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("softcap, chunk", [(None, 4), (3.0, 1), (3.0, 64)])
def test_values_and_gradients_are_the_direct_ones(data, frozen, softcap, chunk):
    hidden, targets, weights = data
    head = _head(softcap).logits
    scale = jnp.linspace(-1.0, 2.0, R * C).reshape(R, C)

    def chunked(hidden):
        logprobs = chunked_logprobs(hidden, targets, weights, head, chunk, head_frozen=frozen)
        return jnp.sum(logprobs * scale), logprobs

    def direct(hidden):
        logprobs = token_logprobs(hidden, targets, head) * weights
        return jnp.sum(logprobs * scale), logprobs

    def both(f):
        return jax.jit(jax.value_and_grad(f, has_aux=True))(hidden)

    ((_, got), slope), ((_, expected), exact) = both(chunked), both(direct)
    np.testing.assert_allclose(got, expected, atol=1e-5)
    np.testing.assert_allclose(slope, exact, atol=1e-5)


def test_a_trained_head_gets_its_gradient(data):
    hidden, targets, weights = data
    kernel = jax.random.normal(jax.random.key(3), (D, V))

    def total(kernel, chunk):
        def head(h):
            return h @ kernel

        return jnp.sum(chunked_logprobs(hidden, targets, weights, head, chunk))

    np.testing.assert_allclose(
        jax.grad(total)(kernel, 4), jax.grad(total)(kernel, C), atol=1e-4, rtol=1e-5
    )


@pytest.mark.parametrize("frozen", [True, False])
def test_no_array_holds_the_logits_of_all_tokens(data, frozen):
    hidden, targets, weights = data
    head, chunk = _head(None).logits, 4

    def total(hidden):
        return jnp.sum(chunked_logprobs(hidden, targets, weights, head, chunk, head_frozen=frozen))

    compiled = jax.jit(jax.grad(total)).lower(hidden).compile().as_text()
    shapes = re.findall(rf"f32\[([0-9,]*),{V}\]", compiled)
    rows = {math.prod(map(int, shape.split(","))) for shape in shapes}
    assert max(rows - {D}) == R * chunk  # D: the head itself


def test_sums_by_sequence_match_a_loop():
    rng = np.random.default_rng(0)
    values = rng.standard_normal((3, 10)).astype(np.float32)
    slots = rng.integers(0, 4, (3, 10)).astype(np.int32)
    expected = [[values[r][slots[r] == s].sum() for s in range(4)] for r in range(3)]
    got = slot_sums(jnp.asarray(values), jnp.asarray(slots), 4)
    np.testing.assert_allclose(got, expected, atol=1e-6)
