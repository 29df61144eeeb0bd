"""On forests with planted effects each signal credits the turn that mattered, and no other."""

import math
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from credit_trees import CHAINS, forest_of
from malt_jax.credit.advantage import global_advantage, normalised_advantage, sibling_advantage
from malt_jax.credit.confidence import above, posterior
from malt_jax.credit.contrast import advice, contrast
from malt_jax.tree.values import back_up, value_forest

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
from credit_simulation import influence_table, trust_table
from planted_forests import EFFECTS, FITS, estimate, heard, judged, plant

DEPTHS = range(3)
TURNS = ("draft", "critique", "refinement")


def grown(needed, n, questions=500, seed=0):
    return plant(jax.random.key(seed), questions, (n, n, n), needed)


@pytest.mark.parametrize("effect", EFFECTS)
def test_the_planted_values_are_what_rewards_average_to(effect):
    planted = grown(EFFECTS[effect], 4)
    for depth, found in enumerate(back_up(planted.rewards)):
        assert float((found - planted.values[depth]).mean()) == pytest.approx(0, abs=0.02)
        # Siblings of all kinds are equally likely, so advantages average to nothing.
        assert float(planted.advantages[depth].mean()) == pytest.approx(0, abs=0.03)
    assert float(jnp.abs(planted.values[-1] - planted.rewards).mean()) > 0.1  # and are not them


@pytest.mark.parametrize("effect", EFFECTS)
def test_advantages_credit_the_turn_that_matters_and_nothing_that_came_before(effect):
    planted = grown(EFFECTS[effect], 3)
    values = back_up(planted.rewards)
    for depth in DEPTHS:
        true = estimate(planted.advantages[depth], planted, depth)
        own = estimate(sibling_advantage(values[depth]), planted, depth)
        assert own.credit == pytest.approx(true.credit, abs=0.06) and abs(own.leak) < 0.04
        assert (true.credit > 0.1) == (depth in EFFECTS[effect])
        scaled = estimate(normalised_advantage(values[depth]), planted, depth)
        assert (scaled.credit > 0.4) == (depth in EFFECTS[effect]) and abs(scaled.leak) < 0.05
        whole = estimate(global_advantage(planted.rewards, depth + 1), planted, depth)
        assert whole.credit == pytest.approx(true.credit, abs=0.06)


@pytest.mark.parametrize(("effect", "depth"), [("draft", 1), ("critique", 2)])
def test_values_and_global_advantages_credit_a_turn_for_what_came_before(effect, depth):
    planted = grown(EFFECTS[effect], 3)
    value = estimate(back_up(planted.rewards)[depth], planted, depth)
    assert abs(value.credit) < 0.05 and value.leak == pytest.approx(0.6, abs=0.05)
    assert estimate(global_advantage(planted.rewards, depth + 1), planted, depth).leak > 0.3


@pytest.mark.parametrize("depth", DEPTHS, ids=TURNS)
def test_more_siblings_make_signals_surer_and_normalising_keeps_its_bias(depth):
    found = {}
    for n in (2, 4, 8):
        planted = grown(EFFECTS[TURNS[depth]], n, 200)
        values = back_up(planted.rewards)[depth]
        signals = (values, sibling_advantage(values), normalised_advantage(values))
        found[n] = [estimate(signal, planted, depth) for signal in signals]
    # The value of a leaf is its own reward, which no sibling makes surer.
    for kind in range(depth == 2, 3):
        assert found[2][kind].deviation > found[4][kind].deviation > found[8][kind].deviation
    # A value has less noise than an advantage, which is the price of taking out what came before.
    assert found[4][0].deviation < found[4][1].deviation
    assert abs(found[8][1].bias) < 0.05 and found[8][2].bias > 0.5


@pytest.mark.parametrize("effect", ["draft", "critique", "refinement"])
def test_verdicts_credit_the_critique_alone_whatever_matters(effect):
    """A verdict is true of its draft with a probability that the critique alone decides."""
    planted = grown(EFFECTS[effect], 3)
    drafts, critiques, refinements = judged(jax.random.key(7), planted)
    assert np.isnan(drafts).all() and np.isnan(refinements).all()
    assert critiques.mean() == pytest.approx(np.mean(FITS), abs=0.03)
    found = estimate(jnp.asarray(critiques), planted, 1)
    assert found.credit == pytest.approx(FITS[1] - FITS[0], abs=0.05)
    assert abs(found.leak) < 0.05


@pytest.mark.parametrize("effect", EFFECTS)
def test_influence_is_found_where_the_critique_matters_and_does_not_say_which_is_good(effect):
    planted = grown(EFFECTS[effect], 3)
    found = heard(planted)
    matters = 1 in EFFECTS[effect]
    assert (found.mean() > 0.03) == matters and (np.abs(found).max() > 0.1) == matters
    good = np.broadcast_to(np.asarray(planted.good[1])[..., None], found.shape)
    assert found[good].mean() == pytest.approx(found[~good].mean(), abs=0.03)
    if effect == "critique":  # by hand: right in 80 or 20% after a critique, in 50% without one
        expected = 0.8 * math.log(0.8 / 0.5) + 0.2 * math.log(0.2 / 0.5)
        assert found.mean() == pytest.approx(expected, abs=0.02)


def test_effects_are_planted_in_every_turn_and_every_two_of_them():
    pairs = {(0, 1), (0, 2), (1, 2)}
    assert {*EFFECTS.values()} == {(0,), (1,), (2,)} | pairs


def test_the_page_has_what_the_script_prints_of_every_effect():
    text = (Path(__file__).parents[1] / "docs" / "credit.md").read_text()
    for name in EFFECTS:
        assert f"\n| {name} | draft |" in text
    for turn in TURNS:
        assert f"\n| {turn} | 2 |" in text


def test_the_page_has_the_numbers_that_the_script_prints():
    page = (Path(__file__).parents[1] / "docs" / "credit.md").read_text()
    rows = influence_table(2000, 3).markdown().splitlines()
    rows += trust_table(2000, (2, 3)).markdown().splitlines()
    assert len(rows) == 12 and all(f"\n{row}\n" in page for row in rows)


@pytest.mark.parametrize(
    ("kinds", "right", "says", "true"),
    [((0.2, 0.8), 1, 0.31, 0.19), ((0.2, 0.8), 2, 0.69, 0.80), ((0.1, 0.45), 3, 0.56, 0.0)],
)
def test_confidence_may_be_wrong_of_values_that_are_not_beta_distributed(kinds, right, says, true):
    """So many right answers of three: docs/credit.md has these numbers."""
    rng = np.random.default_rng(0)
    values = rng.choice(kinds, (9000, 1))
    children = rng.binomial(1, np.repeat(values, 3, axis=1)).astype(np.float32)
    found = above(posterior(jnp.asarray(children)), 0.5)
    alike = children.sum(axis=1) == right
    assert found[alike].mean() == pytest.approx(says, abs=0.03)
    assert (values[alike, 0] > 0.5).mean() == pytest.approx(true, abs=0.03)


def test_confidence_is_as_often_right_as_it_says():
    """True values from a Beta distribution, and critiques of three revisions each."""
    rng = np.random.default_rng(0)
    true = rng.beta(1.5, 1.5, (4000, 1))
    children = rng.binomial(3, np.repeat(true, 3, axis=1)) / 3
    found = above(posterior(jnp.asarray(children, jnp.float32)), 0.5)
    for says in np.unique(found):
        alike = found == says
        if alike.sum() > 100:
            assert (true[alike, 0] > 0.5).mean() == pytest.approx(says, abs=0.07)
    assert len(np.unique(found)) >= 10 and found.min() < 0.1 and found.max() > 0.9


def test_contrast_by_chance_is_unknown_where_there_is_one_branch_to_exchange():
    planted = plant(jax.random.key(5), 50, (3, 1, 1), EFFECTS["draft"])
    found = contrast(forest_of(np.asarray(planted.rewards), CHAINS[3]).trees)
    for role in CHAINS[3][:2]:
        assert found[role]["contrast_by_chance"] is found[role]["differing_by_chance"] is None
    assert found["generator"]["contrast"] > 0.3
    assert "little to learn" not in "".join(advice(found)[:1])


@pytest.mark.parametrize("backup", ["mean", "max"])
def test_what_ends_right_is_counted_by_grades_whatever_rewards_and_backup_say(backup):
    """Two drafts, the first wrong: of its leaves one in four is right, of the other's three."""
    rewards = np.array([[[[0.4, 0.2], [0.3, 0.6]], [[0.9, 0.9], [0.4, 0.9]]]], np.float32)
    forest = forest_of(rewards, CHAINS[3], said={"g1": "#1"})
    (tree,) = value_forest(forest, backup).trees
    nodes = tuple(
        replace(n, correct=n.id == "Q0/g1" if n.role == "generator" else n.correct)
        if n.reward is None
        else replace(n, correct=n.reward > 0.5)
        for n in tree.nodes
    )
    found = contrast([replace(tree, nodes=nodes)])
    for role in CHAINS[3][1:]:
        assert found[role]["right_after_wrong"] == found[role]["wrong_after_right"] == 0.25


@pytest.mark.parametrize("effect", ["draft", "critique", "refinement"])
def test_contrast_beyond_chance_is_found_where_a_turn_matters_and_nowhere_else(effect):
    """The turns after a draft that matters, and before a critique that does, have no effect."""
    planted = plant(jax.random.key(5), 400, (3, 3, 3), EFFECTS[effect])
    found = contrast(forest_of(np.asarray(planted.rewards), CHAINS[3]).trees)
    for depth, role in enumerate(CHAINS[3][:2]):
        one = found[role]
        excess = [one[s] - one[f"{s}_by_chance"] for s in ("contrast", "differing")]
        # Two standard errors of a share of 400 prefixes are 0.05.
        if depth in EFFECTS[effect]:
            assert excess[0] > 0.08 and excess[1] > 0, (role, excess)
        else:
            assert max(map(abs, excess)) < 0.05, (role, excess)
    assert found["refiner"]["contrast_by_chance"] is None
