"""Intervals, tests and votes against oracles: scipy, closed formulas, brute force."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from malt_jax.evaluation import statistics
from malt_jax.evaluation.breakdown import natural_order
from malt_jax.evaluation.calibration import auc, calibration
from malt_jax.tree.node import Node, Tree

counts = st.integers(0, 400)
answers = st.lists(st.sampled_from([None, "1", "2", "3", ""]), min_size=1, max_size=9)


@given(counts, counts, st.sampled_from([0.8, 0.95, 0.99]))
def test_wilson_interval_agrees_with_scipy(successes, failures, confidence):
    trials = successes + failures
    low, high = statistics.wilson_interval(successes, trials, confidence)
    if trials == 0:
        assert (low, high) == (0, 1)
        return
    expected = stats.binomtest(successes, trials).proportion_ci(confidence, "wilson")
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert 0 <= low <= successes / trials <= high <= 1


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_twice_the_smaller_binomial_tail(b, c):
    n = b + c
    tail = sum(math.comb(n, i) for i in range(min(b, c) + 1)) / 2**n
    assert statistics.exact_mcnemar(b, c) == pytest.approx(min(1, 2 * tail))
    assert statistics.exact_mcnemar(b, c) == statistics.exact_mcnemar(c, b)


@given(st.lists(st.integers(-1, 1), max_size=80))
def test_clustered_test_of_one_seed_is_mcnemar(differences):
    b, c = differences.count(1), differences.count(-1)
    assert statistics.clustered_mcnemar(differences) == pytest.approx(
        statistics.exact_mcnemar(b, c)
    )


@given(st.lists(st.integers(-3, 3), max_size=9))
def test_clustered_test_is_the_enumeration_of_all_sign_flips(differences):
    observed = abs(sum(differences))
    flipped = [
        abs(sum(sign * d for sign, d in zip(signs, differences, strict=True)))
        for signs in itertools.product([-1, 1], repeat=len(differences))
    ]
    expected = sum(total >= observed for total in flipped) / len(flipped)
    assert statistics.clustered_mcnemar(differences) == pytest.approx(expected)


def test_repeating_a_question_under_more_seeds_is_no_new_evidence():
    one_seed = statistics.clustered_mcnemar([1] * 8 + [-1] * 2)
    three_equal_seeds = statistics.clustered_mcnemar([3] * 8 + [-3] * 2)
    assert three_equal_seeds == pytest.approx(one_seed)
    assert statistics.exact_mcnemar(24, 6) < one_seed / 10  # what ignoring the clusters would say


def test_bootstrap_is_the_one_that_draws_questions_one_by_one():
    rng = np.random.default_rng(1)
    sums, sizes = rng.integers(-2, 3, 50), rng.integers(2, 4, 50)
    drawn = rng.integers(0, 50, (20_000, 50))
    means = sums[drawn].sum(1) / sizes[drawn].sum(1)
    expected = np.quantile(means, [0.025, 0.975])
    assert statistics.bootstrap_interval(sums, sizes, resamples=20_000) == pytest.approx(
        expected, abs=0.01
    )


def test_bootstrap_of_paired_differences_has_the_textbook_width():
    differences = np.array([1] * 90 + [-1] * 40 + [0] * 370)
    low, high = statistics.bootstrap_interval(differences)
    error = differences.std() / math.sqrt(len(differences))
    assert (low, high) == pytest.approx((0.1 - 1.96 * error, 0.1 + 1.96 * error), abs=0.004)


@settings(max_examples=30)
@given(st.lists(st.integers(-1, 1), min_size=1, max_size=40), st.integers(0, 5))
def test_bootstrap_depends_on_its_seed_and_not_on_the_order_of_questions(differences, seed):
    first = statistics.bootstrap_interval(differences, seed=seed, resamples=500)
    assert first == statistics.bootstrap_interval(differences[::-1], seed=seed, resamples=500)
    if len(set(differences)) > 1:
        assert min(differences) <= first[0] <= first[1] <= max(differences)


@pytest.mark.parametrize("value", [-1, 0, 1])
def test_questions_that_are_all_alike_prove_little_where_they_are_few(value):
    few, many = (statistics.bootstrap_interval([value] * n) for n in (5, 5000))
    assert few[0] <= value <= few[1] and many[0] <= value <= many[1]
    assert few[1] - few[0] > 0.4 and many[1] - many[0] < 0.002
    # Alike they are also where clusters have other sizes.
    sizes = [3, 2, 1]
    assert statistics.bootstrap_interval([value * n for n in sizes], sizes) == pytest.approx(
        statistics.bootstrap_interval([value] * 3)
    )
    assert few[0] >= -1 and few[1] <= 1
    if value == 1:
        assert few == pytest.approx((statistics.wilson_interval(5, 5)[0], 1.0))


def test_bootstrap_refuses_what_it_cannot_resample():
    with pytest.raises(ValueError):
        statistics.bootstrap_interval([])
    with pytest.raises(ValueError):
        statistics.bootstrap_interval([1.0, 0.0], [1])


@given(st.lists(st.floats(0, 1), max_size=12), st.floats(0.001, 0.5))
def test_holm_rejects_exactly_what_the_step_down_procedure_rejects(p_values, alpha):
    adjusted = statistics.holm(p_values)
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    rejected, going = set(), True
    for rank, index in enumerate(order):
        going = going and (len(p_values) - rank) * p_values[index] <= alpha
        if going:
            rejected.add(index)
    assert rejected == {i for i, p in enumerate(adjusted) if p <= alpha}
    assert all(p <= q <= 1 for p, q in zip(p_values, adjusted, strict=True))


@given(answers)
def test_a_vote_is_won_by_the_most_frequent_answer_and_then_the_first(predictions):
    vote = statistics.majority_vote(predictions)
    parsed = [p for p in predictions if p is not None]
    if not parsed:
        assert vote == statistics.Vote(None, 0, False)
        return
    most = max(map(parsed.count, parsed))
    winners = {p for p in parsed if parsed.count(p) == most}
    assert vote.answer == next(p for p in predictions if p in winners)
    assert vote.draw == predictions.index(vote.answer)
    assert vote.tie == (len(winners) > 1)


def test_draws_without_an_answer_never_outvote_an_answer():
    assert statistics.majority_vote([None, None, "7"]) == statistics.Vote("7", 2, False)


def test_empty_text_is_an_answer_and_none_is_not():
    assert statistics.majority_vote(["", "", "7"]).answer == ""


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=40))
def test_flips_explain_the_change_in_accuracy(pairs):
    before, after = [p[0] for p in pairs], [p[1] for p in pairs]
    changed = statistics.flips(before, after)
    assert changed.wrong_to_right - changed.right_to_wrong == sum(after) - sum(before)
    back = statistics.flips(after, before)
    assert (back.wrong_to_right, back.right_to_wrong) == (
        changed.right_to_wrong,
        changed.wrong_to_right,
    )


@given(st.lists(st.tuples(st.sampled_from([0, 0.25, 0.5, 1]), st.booleans()), max_size=30))
def test_auc_is_the_share_of_pairs_in_order(scored):
    predicted = np.array([p for p, _ in scored])
    observed = np.array([o for _, o in scored], dtype=float)
    pairs = [(a, b) for a, x in scored if x for b, y in scored if not y]
    if not pairs:
        assert auc(predicted, observed) is None
        return
    expected = sum((a > b) + 0.5 * (a == b) for a, b in pairs) / len(pairs)
    assert auc(predicted, observed) == pytest.approx(expected)


def _tree(rewards: list[list[list[int]]]) -> Tree:
    """A tree of three roles with the given leaf rewards."""
    nodes: list[list[Node]] = [[], [], []]

    def add(depth: int, name: str, values: object, reward: int | None = None) -> None:
        nodes[depth].append(
            Node(
                id=name,
                role=("generator", "verifier", "refiner")[depth],
                parent=name.rpartition("/")[0] or None,
                **{"prompt": "", "prompt_ids": (), "cut": 0, "completion": "", "token_ids": ()},
                **{"logprobs": (), "finish": "eos"},
                value=float(np.mean(values)),
                reward=None if reward is None else float(reward),
            )
        )

    for i, drafts in enumerate(rewards):
        add(0, f"g{i}", drafts)
        for j, leaves in enumerate(drafts):
            add(1, f"g{i}/v{j}", leaves)
            for k, reward in enumerate(leaves):
                add(2, f"g{i}/v{j}/r{k}", reward, reward)
    shape = (len(rewards), len(rewards[0]), len(rewards[0][0]))
    roles = ("generator", "verifier", "refiner")
    return Tree("Q", "", "", {}, shape, roles, tuple(itertools.chain(*nodes)))


def test_calibration_never_lets_a_leaf_predict_itself():
    # Each value is made of one lucky leaf: predicting from the other leaf is always wrong.
    result = calibration([_tree([[[1, 0], [0, 1]]])])
    assert result["verifier"]["auc"] == 0.0
    assert result["verifier"]["brier"] == 1.0
    assert result["generator"]["brier"] == 0.25  # every branch predicts one half


def test_calibration_of_coin_flips_finds_nothing_and_of_skill_finds_it():
    rng = np.random.default_rng(0)
    luck = [_tree(rng.integers(0, 2, (3, 3, 3)).tolist()) for _ in range(200)]
    skill = [
        _tree((rng.random((3, 3, 3)) < rng.random((3, 1, 1))).astype(int).tolist()) for _ in luck
    ]
    assert abs(calibration(luck)["generator"]["auc"] - 0.5) < 0.05
    found = calibration(skill)["generator"]
    assert found["auc"] > 0.65 and found["brier"] < found["brier_base"]
    assert sum(b["count"] for b in found["bins"]) == found["outcomes"] == 200 * 27
    assert "refiner" not in found


def test_calibration_of_no_trees_and_of_single_branches_is_empty():
    assert calibration([]) == {}
    assert calibration([_tree([[[1]]])]) == {}


def test_levels_of_any_text_are_sorted_by_the_numbers_in_them():
    levels = ["9" * 5000, "Level 10", "10²", "²", "Level 2", "Level 02"]
    named = [level for level in sorted(levels, key=natural_order) if level.startswith("Level")]
    assert named == ["Level 2", "Level 02", "Level 10"]
