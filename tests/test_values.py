"""Value iteration against a brute-force oracle that walks the tree node by node."""

import itertools
import math

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from malt_jax.tree.values import back_up, back_up_ragged, label


def oracle(rewards: np.ndarray, path: tuple[int, ...], backup: str, softness: float) -> float:
    """The recursive definition, in float64."""
    node = rewards[path]
    if node.ndim == 0:
        return float(node)
    children = [oracle(rewards, (*path, i), backup, softness) for i in range(node.shape[0])]
    if backup == "mean":
        return sum(children) / len(children)
    if backup == "max":
        return max(children)
    total = sum(math.exp(child / softness) for child in children)
    return softness * math.log(total / len(children))


trees = st.lists(st.integers(1, 4), min_size=1, max_size=5).flatmap(
    lambda branches: st.lists(
        st.booleans(), min_size=math.prod(branches) * 2, max_size=math.prod(branches) * 2
    ).map(lambda bits: np.array(bits, np.float32).reshape(2, *branches))
)


@settings(max_examples=40, deadline=None)
@given(trees, st.sampled_from(["mean", "max", "soft"]))
def test_every_level_equals_the_recursive_definition(rewards, backup):
    levels = back_up(jnp.asarray(rewards), backup, 0.25)
    for depth, values in enumerate(levels, start=1):
        assert values.shape == rewards.shape[: depth + 1]
        for path in itertools.product(*map(range, values.shape)):
            expected = oracle(rewards.astype(np.float64), path, backup, 0.25)
            assert float(values[path]) == pytest.approx(expected, abs=2e-6)


def test_the_published_tree_has_39_nodes_and_27_leaves():
    levels = back_up(jnp.ones((5, 3, 3, 3)))
    assert [level[0].size for level in levels] == [3, 9, 27]


@pytest.mark.parametrize("branches", [(2,), (4, 2), (6, 6, 6), (10, 6, 2)])
def test_a_tie_with_the_threshold_is_exact_and_negative(branches):
    """Half the leaves right is V = 1/2 to the last bit, so no rounding can make it positive."""
    half = np.zeros(math.prod(branches), np.float32)
    half[::2] = 1
    (values, *_) = back_up(jnp.asarray(half.reshape(1, 1, *branches)))
    assert float(values[0, 0]) == 0.5
    assert not bool(label(values)[0, 0])


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("threshold", [0.5, 2 / 3, 0.9])
def test_a_tie_is_negative_in_whatever_order_the_leaves_come(threshold, ragged):
    rng, back = np.random.default_rng(0), back_up_ragged if ragged else back_up
    leaves = np.array([threshold - 0.1, threshold - 0.3, threshold + 0.4] * 3)
    trees = np.stack([rng.permutation(leaves).reshape(3, 3) for _ in range(200)])
    (values, *_) = back(jnp.asarray(trees[:, None], jnp.float32))
    assert not label(values, threshold).any()
    assert label(values + 1e-4, threshold).all()


def test_soft_lies_between_mean_and_max():
    rewards = jnp.asarray([[[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]])
    mean, soft, top = (back_up(rewards, kind)[0] for kind in ("mean", "soft", "max"))
    assert bool((mean <= soft).all()) and bool((soft <= top).all())
    assert float(back_up(rewards, "soft", 1e-3)[0][0, 0]) == pytest.approx(1.0, abs=2e-3)
    assert float(back_up(rewards, "soft", 1e3)[0][0, 0]) == pytest.approx(1 / 3, abs=1e-3)
