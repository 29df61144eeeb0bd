"""Top-k, top-p and the draw against sorting and counting."""

from __future__ import annotations

import jax
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from malt_jax.sampling.filters import (
    Filters,
    draw,
    inverse_cdf,
    top_k_threshold,
    top_p_threshold,
)

V = 37
by_k, by_p, pick, draw_ = map(jax.jit, (top_k_threshold, top_p_threshold, inverse_cdf, draw))
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


@settings(max_examples=150, deadline=None)
@given(
    arrays.arrays(np.float32, (1, 300), elements=st.sampled_from([0.0, 0.0, 1.0, 0.25, 1e-6, 7.0])),
    st.floats(0, 1, exclude_max=True, width=32),
)
def test_inverse_cdf_never_draws_what_has_no_weight(weights, uniform):
    weights[0, 150] = 1.0
    index = int(pick(weights, np.array([uniform], np.float32))[0])
    assert weights[0, index] > 0
    running = np.cumsum(weights[0].astype(np.float64))
    target = uniform * running[-1]
    assert running[index] >= target - 1e-3
    assert running[index] - weights[0, index] <= target + 1e-3


def test_draws_follow_the_distribution():
    rows = 4096
    logits = np.log(np.array([0.5, 0.25, 0.15, 0.1], np.float32))
    keys = np.stack([np.arange(rows), np.full(rows, 9)], 1).astype(np.uint32)
    full = lambda x, t: np.full(rows, x, t)  # noqa: E731
    filters = Filters(full(1, np.float32), full(0, np.int32), full(1, np.float32))
    drawn = draw_(np.tile(logits, (rows, 1)), keys, full(3, np.int32), filters)
    shares = np.bincount(drawn.token, minlength=4) / rows
    np.testing.assert_allclose(shares, [0.5, 0.25, 0.15, 0.1], atol=0.03)
    np.testing.assert_allclose(drawn.logprob, logits[drawn.token], atol=1e-5)


def test_rows_with_different_parameters_share_a_batch():
    logits = np.array([[0.0, 3.0, 1.0]] * 4, np.float32)
    keys, top_p = np.zeros((4, 2), np.uint32), np.array([1, 1, 1e-6, 1], np.float32)
    filters = Filters(np.array([0, 9, 9, 9], np.float32), np.array([0, 1, 0, 3], np.int32), top_p)
    drawn = draw_(logits, keys, np.zeros(4, np.int32), filters)
    assert drawn.token[:3].tolist() == [1, 1, 1]
    assert not drawn.not_finite.any()
    logits[2, 0], logits[3, 1] = np.nan, np.inf
    greedy = Filters(np.zeros(4, np.float32), np.zeros(4, np.int32), np.ones(4, np.float32))
    not_finite = draw_(logits, keys, np.zeros(4, np.int32), greedy).not_finite
    assert not_finite.tolist() == [False, False, True, True]
