"""Top-k, top-p and the draw against sorting and counting."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from malt_jax.models.head import in_blocks, vocab_blocks
from malt_jax.sampling import filters as module
from malt_jax.sampling import reference
from malt_jax.sampling.filters import Filters, draw, smallest_kept, uniforms
from malt_jax.sampling.request import SamplingParams

V = 37
smallest_kept_, draw_ = jax.jit(smallest_kept), jax.jit(draw)


def by_k(scores, k):
    scores = scores[:, None]
    return smallest_kept_(scores, np.ones_like(scores), k.astype(np.float32), k > 0)


def by_p(scores, p):
    weights = np.exp(scores[:, None])
    return smallest_kept_(scores[:, None], weights, p * weights.sum((1, 2)), p < 1)


scores_ = arrays.arrays(
    np.float32,
    (1, V),
    elements=st.one_of(
        st.floats(-60, 0, width=32), st.sampled_from([0.0, -1.0, -2.5, -1e-30, -3e4])
    ),
).map(lambda x: np.where(x > x.max() - np.float32(1e-30), np.float32(0), x - x.max()))


@settings(max_examples=150, deadline=None)
@given(scores_, st.integers(1, V + 3))
def test_top_k_keeps_what_a_sort_keeps(scores, k):
    kept = scores[0] >= by_k(scores, np.array([k], np.int32))[0]
    expected = scores[0] >= np.sort(scores[0])[::-1][min(k, V) - 1]
    np.testing.assert_array_equal(kept, expected)


@settings(max_examples=150, deadline=None)
@given(scores_, st.integers(1, 99).map(lambda x: x / 100))
def test_top_p_keeps_the_fewest_that_reach_p(scores, p):
    kept = np.asarray(scores[0] >= by_p(scores, np.array([p], np.float32))[0])
    weights = np.exp(scores[0].astype(np.float64))
    share = weights / weights.sum()
    assert share[kept].sum() >= p - 1e-5
    smallest = scores[0][kept].min()
    assert kept[scores[0] > smallest].all() and kept[scores[0] == smallest].all()
    without = share[scores[0] > smallest].sum()
    assert without < p + 1e-5


@functools.cache
def searching(candidates):
    """Finds the thresholds of logits, when so many blocks are searched first."""

    def thresholds(logits, k, p):
        maxima = jnp.max(logits, -1)
        top = jnp.max(maxima, -1)
        scores = lambda x: x - top.reshape(-1, *[1] * (x.ndim - 1))  # noqa: E731
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "CANDIDATES", candidates)
            return module._threshold(logits, maxima, scores, k, p)

    return jax.jit(thresholds)


@pytest.mark.parametrize("spread", [0.1, 1.0, 6.0])
@pytest.mark.parametrize(("k", "p"), [(3, 1.0), (20, 1.0), (0, 0.3), (0, 0.97), (30, 0.8)])
def test_what_is_kept_does_not_depend_on_the_blocks_searched_first(spread, k, p):
    """A few blocks hold all that is kept of a peaked distribution, and not of a flat one."""
    logits = (spread * np.random.default_rng(0).standard_normal((20, 6, 8))).astype(np.float32)
    logits[:, 2] = np.round(logits[:, 2])  # with equal ones
    k, p = np.full(20, k, np.int32), np.full(20, p, np.float32)
    scores = logits - logits.max((1, 2), keepdims=True)
    by_all = scores >= searching(6)(logits, k, p)[:, None, None]
    for candidates in (1, 2, 5):
        kept = scores >= searching(candidates)(logits, k, p)[:, None, None]
        np.testing.assert_array_equal(kept, by_all)


@settings(max_examples=200, deadline=None)
@given(
    arrays.arrays(
        np.float32, (1, 300), elements=st.sampled_from([-np.inf, -np.inf, 0.0, -1.4, -14.0, 1.9])
    ),
    st.integers(0, 2**32 - 1),
    st.sampled_from([0.0, 0.5, 1.0]),
    st.sampled_from([0, 1, 40]),
    st.sampled_from([1.0, 0.9, 0.4]),
)
def test_a_draw_is_the_reference_samplers(logits, seed, temperature, k, p):
    """Within rounding of the border between two tokens; the last block has room behind its end."""
    logits[0, 150] = 0.5
    keys, steps = np.array([[seed, 1]], np.uint32), np.zeros(1, np.int32)
    params = SamplingParams(temperature=temperature, top_k=k, top_p=p)
    filters = Filters(np.float32([temperature]), np.int32([k]), np.float32([p]))
    token = int(draw_(in_blocks(jnp.asarray(logits), 3, 128), keys, steps, filters).token[0])
    assert np.isfinite(logits[0, token])
    uniform = float(jax.jit(uniforms)(keys, steps)[0])
    near = (reference.pick(logits[0].astype(np.float64), max(0.0, u), params)
            for u in (uniform - 1e-5, uniform, uniform + 1e-5))  # fmt: skip
    assert token in near


@pytest.mark.parametrize(
    ("vocab", "parts", "expected"),
    [
        (128256, 1, (1002, 128)),  # Llama 3
        (128256, 4, (1336, 96)),  # 334 blocks on each of four devices
        (151936, 2, (1187 * 2, 64)),  # Qwen 2.5
        (32064, 1, (334, 96)),  # Phi 3
        (55, 1, (1, 55)),
        (32003, 1, (251, 128)),  # no width divides it, so the last block has room
    ],
)
def test_blocks_fill_the_parts_of_a_vocabulary(vocab, parts, expected):
    assert vocab_blocks(vocab, parts) == expected


def test_draws_follow_the_distribution():
    rows = 4096
    logits = np.log(np.array([0.5, 0.25, 0.15, 0.1], np.float32))
    keys = np.stack([np.arange(rows), np.full(rows, 9)], 1).astype(np.uint32)
    full = lambda x, t: np.full(rows, x, t)  # noqa: E731
    filters = Filters(full(1, np.float32), full(0, np.int32), full(1, np.float32))
    drawn = draw_(np.tile(logits.reshape(2, 2), (rows, 1, 1)), keys, full(3, np.int32), filters)
    shares = np.bincount(drawn.token, minlength=4) / rows
    np.testing.assert_allclose(shares, [0.5, 0.25, 0.15, 0.1], atol=0.03)
    np.testing.assert_allclose(drawn.logprob, logits[drawn.token], atol=1e-5)


def test_rows_with_different_parameters_share_a_batch():
    logits = np.array([[0.0, 3.0, 1.0]] * 4, np.float32)
    keys, top_p = np.zeros((4, 2), np.uint32), np.array([1, 1, 1e-6, 1], np.float32)
    filters = Filters(np.array([0, 9, 9, 9], np.float32), np.array([0, 1, 0, 3], np.int32), top_p)
    drawn = draw_(logits[:, None], keys, np.zeros(4, np.int32), filters)
    assert drawn.token[:3].tolist() == [1, 1, 1]
    assert not drawn.not_finite.any()
    logits[2, 0], logits[3, 1] = np.nan, np.inf
    greedy = Filters(np.zeros(4, np.float32), np.zeros(4, np.int32), np.ones(4, np.float32))
    not_finite = draw_(logits[:, None], keys, np.zeros(4, np.int32), greedy).not_finite
    assert not_finite.tolist() == [False, False, True, True]
