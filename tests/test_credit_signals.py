"""The signals of a forest against plain Python loops over the tree, at depths 1 to 4."""

import itertools
import math
import statistics

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from credit_trees import CHAINS, forest_of
from malt_jax.credit.advantage import global_advantage, normalised_advantage, sibling_advantage
from malt_jax.credit.confidence import above, posterior
from malt_jax.credit.signals import node_signals
from malt_jax.credit.verdict import judged_answers, read_verdict, verdict_agreement
from malt_jax.tree.node import Forest
from malt_jax.tree.values import back_up


def some_rewards(branches, kind):
    reward = st.sampled_from([0.0, 1.0]) if kind == "outcome" else st.integers(0, 10).map(_tenths)
    size = 2 * math.prod(branches)
    return st.lists(reward, min_size=size, max_size=size).map(
        lambda flat: np.array(flat, np.float32).reshape(2, *branches)
    )


def _tenths(number):
    return number / 10


forests = st.tuples(
    st.lists(st.integers(1, 4), min_size=1, max_size=4), st.sampled_from(["outcome", "partial"])
).flatmap(lambda drawn: some_rewards(*drawn))


def paths(rewards, level):
    return itertools.product(*map(range, rewards.shape[: level + 1]))


def mean_below(rewards, path):
    return float(np.mean(rewards[path], dtype=np.float64))


@settings(max_examples=40, deadline=None)
@given(forests)
def test_advantages_equal_the_loops_over_siblings_and_leaves(rewards):
    levels = back_up(jnp.asarray(rewards))
    for level, values in enumerate(levels, start=1):
        own, scaled = sibling_advantage(values), normalised_advantage(values)
        whole = global_advantage(jnp.asarray(rewards), level)
        assert own.shape == scaled.shape == whole.shape == values.shape
        for path in paths(rewards, level):
            family = [mean_below(rewards, (*path[:-1], i)) for i in range(values.shape[-1])]
            others = family[: path[-1]] + family[path[-1] + 1 :]
            expected = family[path[-1]] - statistics.fmean(others) if others else 0.0
            assert float(own[path]) == pytest.approx(expected, abs=2e-6)
            std = statistics.pstdev(family)
            equal = max(family) - min(family) < 1e-6
            assert float(scaled[path]) == pytest.approx(0 if equal else expected / std, abs=2e-4)
            elsewhere = [
                float(rewards[leaf])
                for leaf in paths(rewards, len(levels))
                if leaf[0] == path[0] and leaf[: level + 1] != path
            ]
            rest = family[path[-1]] - statistics.fmean(elsewhere) if elsewhere else 0.0
            assert float(whole[path]) == pytest.approx(rest, abs=2e-6)


def test_siblings_that_agree_have_no_advantage_whatever_their_rounding():
    values = jnp.full((1, 3, 7), 1 / 3, jnp.float32)
    assert not np.any(sibling_advantage(values)) and not np.any(normalised_advantage(values))


@pytest.mark.parametrize("n", range(2, 10))
def test_a_turn_as_good_as_its_siblings_is_neither_better_nor_worse(n):
    """Values of a record are rounded, and so is their mean: neither may decide the sign."""
    rights = np.random.default_rng(n).integers(0, n + 1, (4000, n))
    rounded = jnp.asarray((rights / n).round(6), jnp.float32)
    own, scaled = sibling_advantage(rounded), normalised_advantage(rounded)
    as_good = n * rights == rights.sum(axis=1, keepdims=True)
    assert as_good.any() and not as_good.all()
    assert (np.asarray(own == 0) == as_good).all() and (np.asarray(scaled == 0) == as_good).all()


def test_advantages_of_a_group_sum_to_zero_and_normalising_keeps_their_signs():
    values = jnp.asarray(np.random.default_rng(0).random((5, 3, 4)), jnp.float32)
    own, scaled = sibling_advantage(values), normalised_advantage(values)
    np.testing.assert_allclose(own.sum(axis=-1), 0, atol=1e-6)
    assert np.array_equal(np.sign(own), np.sign(scaled))


def confidence_by_loops(children, threshold):
    """The formulas of `credit.confidence`, node by node in float64, integrated by scipy."""
    nodes = children.reshape(-1, children.shape[-1]).astype(np.float64)
    n = nodes.shape[1]
    means = [statistics.fmean(node) for node in nodes]
    m = statistics.fmean(means)
    products = [node[j] * node[k] for node in nodes for j in range(n) for k in range(n) if j != k]
    s2 = statistics.fmean(products) - m**2
    w = statistics.fmean([statistics.variance(node) for node in nodes])
    e = max((m * (1 - m) - s2) / w, 1)
    total = m * (1 - m) / s2 - 1
    return [
        stats.beta.sf(threshold, total * m + n * e * v, total * (1 - m) + n * e * (1 - v))
        for v in means
    ]


def confidence(children):
    """P(true value > 1/2) of every node."""
    return above(posterior(children), 0.5)


@pytest.mark.parametrize("n", [2, 3, 5])
def test_confidence_equals_the_beta_posterior_of_its_formula(n):
    rng = np.random.default_rng(n)
    true = rng.beta(1.5, 1.0, (40, 3, 1))
    children = rng.binomial(4, true, (40, 3, n)).astype(np.float32) / 4
    found = np.asarray(confidence(jnp.asarray(children))).ravel()
    np.testing.assert_allclose(found, confidence_by_loops(children, 0.5), atol=2e-3)


def test_confidence_grows_with_the_trees_that_agree_and_is_never_certain():
    never_differ = jnp.asarray([[1.0, 1.0], [0.0, 0.0]])
    few, many = (confidence(jnp.tile(never_differ, (times, 1)))[:2] for times in (1, 500))
    assert 0.8 < few[0] < 0.98 and 0.02 < few[1] < 0.2
    assert 0.999 < many[0] < 1 and 0 < many[1] < 0.001
    # Each node has one right and one wrong branch: a coin of 1/2 everywhere.
    np.testing.assert_allclose(confidence(jnp.asarray([[1.0, 0.0], [0.0, 1.0]])), 0.5, atol=1e-6)
    # All nodes have one value: pooled, the further from theta, the surer.
    assert 0.9 < confidence(jnp.ones((3, 3)))[0] < 1
    assert np.isnan(confidence(jnp.ones((3, 1)))).all()


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_signals_are_keyed_by_node_and_agree_with_the_arrays(depth):
    branches = (2, 3, 2, 2)[:depth]
    rewards = np.random.default_rng(depth).integers(0, 5, (3, *branches)) / np.float32(4)
    forest = forest_of(rewards, CHAINS[depth])
    signals = node_signals(forest)
    assert set(signals) == {node.id for tree in forest.trees for node in tree.nodes}
    for tree in forest.trees:
        for siblings in tree.children.values():
            for node in siblings:
                rest = [s.value for s in siblings if s is not node]
                expected = node.value - statistics.fmean(rest)
                assert signals[node.id]["advantage"] == pytest.approx(expected, abs=3e-6)
                assert ("confidence" in signals[node.id]) == (node.reward is None)


def test_trees_of_several_shapes_are_one_forest():
    wide, deep = np.ones((1, 4), np.float32), np.zeros((2, 2, 2), np.float32)
    mixed = Forest([*forest_of(wide, ("a",)).trees, *forest_of(deep, ("a", "b"), "P").trees])
    assert len(node_signals(mixed)) == 4 + 2 * (2 + 4)


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("Every step is right.", True),
        ("No errors were found in the solution.", True),
        ("There is nothing wrong with it.", True),
        ("You've already followed the steps correctly.", True),
        ("18,27,29,33,40,46,55:55 ok", True),
        ("The first wrong step is step 2: 3 * 4 is 12.", False),
        ("Steps 1 and 2 are right. Step 3 is incorrect.", False),
        ("The answer is not correct.", False),
        ("That isn't right.", False),
        ("18,27,29,33,40,46,55:56 high", False),
        ("18,27,29,33,40,46,55:54 LOW", False),
        ("I could not find any errors.", True),
        ("This is the correct answer.", True),
        ("There is no doubt that this is right.", True),
        ("Not only is step 2 right, step 3 is too.", True),
        ("This is not the correct answer.", False),
        ("This is not the right answer, which is 12.", False),
        ("That does not look right.", False),
        ("I don't think that is right.", False),
        ("None of the steps are right.", False),
        ("Neither step 1 nor step 2 is right.", False),
        ("Nothing here is correct.", False),
        ("No step is valid.", False),
        ("No, step 2 is wrong.", False),
        ("Step 1 is not a valid step.", False),
        ("That cannot be right.", False),
        ("The steps are far from correct.", False),
        ("The solution is partially correct.", False),
        ("Step 1 is right. Step 2 should have used 4.", False),
        ("Step 1 is right. Step 2 should be 3 * 4 = 12.", None),
        ("The correct answer is 12, not 15.", None),
        ("The right result of step 2 is 12.", None),
        ("Correct answer: 12", None),
        ("Check whether the answer is correct.", None),
        ("I will see if every step is right.", None),
        ("Is step 2 right?", None),
        ("It would be right with 4 in place of 3.", None),
        ("3 + 4 = 7 and 7 * 2 = 14", None),
        ("The answer is 97.", None),
        ("The high school has three rooms.", None),
        ("Step 3 has no justification and is incorrect.", False),
        ("There is no doubt that step 2 is wrong.", False),
        ("The draft shows no work and the answer is wrong.", False),
        ("Step 2 was done without carrying and is wrong.", False),
        ("It shows no unit, but step 2 is wrong.", False),
        ("Nothing is wrong.", True),
        ("None of the steps is wrong.", True),
        ("No step is incorrect.", True),
        ("There are no steps that are wrong.", True),
        ("No arithmetic or logical errors.", True),
        ("There are no errors or mistakes.", True),
        ("", None),
    ],
)
def test_the_verdict_of_a_critique_is_read(text, verdict):
    found = read_verdict(text)
    assert (found and found.approves) is verdict


def test_a_verdict_is_graded_against_the_latest_earlier_answer():
    said = {"g0": "#1", "g1": "#0", "v0": "right", "v1": "wrong"}  # the first draft is right
    forest = forest_of(
        np.ones((1, 2, 2, 1), np.float32), ("generator", "verifier", "refiner"), said=said
    )
    (tree,) = forest.trees
    assert judged_answers(tree)["Q0/g0/v1/r0"].id == "Q0/g0"
    assert judged_answers(tree)["Q0/g0"] is None
    assert verdict_agreement(tree, {"verifier": read_verdict}) == {
        "Q0/g0/v0": 1.0, "Q0/g0/v1": 0.0, "Q0/g1/v0": 0.0, "Q0/g1/v1": 1.0
    }  # fmt: skip
    assert "verdict" not in node_signals(forest)["Q0/g0/v0"]  # no reader was given
    assert node_signals(forest, readers={"verifier": read_verdict})["Q0/g1/v0"]["verdict"] == 0.0


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("I can't find anything wrong with it.", True),
        ("I could not find any step that is wrong.", True),
        ("There are zero errors.", True),
        ("The reasoning is right except for step 3.", None),
        ("I find something wrong in step 2.", False),
    ],
)
def test_negated_searches_and_exceptions_are_read(text, verdict):
    found = read_verdict(text)
    assert (found and found.approves) is verdict
