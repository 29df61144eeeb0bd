"""Adaptive branching: the same texts and calls, more siblings where outcomes differ."""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import multihost_utils

import malt_jax as malt
import test_options
import tiny
from credit_trees import CHAINS, forest_of
from malt_jax.config.pipeline import PipelineConfig, RoleConfig
from malt_jax.config.reading import to_dict
from malt_jax.credit.contrast import contrast
from malt_jax.credit.signals import node_signals
from malt_jax.stages import search
from malt_jax.tasks.base import Question
from malt_jax.tree.adaptive import allocate, first_pass, grow, outcome_variance
from malt_jax.tree.expand import Prefix
from malt_jax.tree.node import EQUAL, Forest, Tree
from malt_jax.tree.outside import complete
from malt_jax.tree.roles import make_chain
from malt_jax.tree.values import back_up, back_up_ragged, value_forest

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
from planted_forests import EFFECTS, drawn, plant


class HalfSettled(tiny.LuckGrader):
    """Every second question is right whatever is answered, the others by luck."""

    def grade(self, texts, questions):
        lucky = super().grade(texts, questions)
        return [
            replace(one, correct=True, reward=1.0) if int(q.id[-1]) % 2 else one
            for one, q in zip(lucky, questions, strict=True)
        ]


TASK = replace(tiny.LUCK, grader=HalfSettled())


def two_roles(branch: int) -> PipelineConfig:
    generator, _, refiner = test_options.base().pipeline.roles
    generator = replace(generator, template="G {question} ")
    refiner = replace(refiner, template="R {question} {previous} ")
    return PipelineConfig(tuple(replace(role, branch=branch) for role in (generator, refiner)))


def searched(branch: int, spare: int = 0, questions: int = 6) -> Forest:
    pipeline, session = two_roles(branch), test_options.shared_session()
    return malt.search(
        session.model, TASK.load("train", limit=questions), pipeline, task=TASK,
        sampler=session.sampler, spare=spare,
    )  # fmt: skip


@pytest.fixture(scope="module")
def adaptive() -> Forest:
    return searched(3, spare=1)


def contested(forest: Forest) -> int:
    """The place of a tree that has got more calls than its share, unlike settled ones."""
    return next(i for i, tree in enumerate(forest.trees) if len(tree.nodes) > 3 + 9)


def ragged(rewards: np.ndarray) -> Forest:
    """The valued forest of an array of rewards in which absent leaves are NaN."""
    depth = rewards.ndim - 1
    return forest_of(rewards, CHAINS[depth], ragged=(3,) * depth)


def random_rewards(*shape: int, seed: int = 0) -> np.ndarray:
    """Rewards of ragged trees: of every prefix the first one to all of its siblings exist."""
    rng = np.random.default_rng(seed)
    rewards = rng.integers(0, 2, shape).astype(np.float32)
    present = np.ones(shape[:1], bool)
    for n in shape[1:]:
        present = np.arange(n) < (rng.integers(1, n + 1, present.shape) * present)[..., None]
    return np.where(present, rewards, np.nan).astype(np.float32)


def test_common_paths_have_the_texts_of_fixed_trees_and_each_role_makes_as_many_calls(adaptive):
    wide = searched(6)
    texts = {node.id: (node.token_ids, node.correct) for t in wide.trees for node in t.nodes}
    for tree in adaptive.trees:
        assert [(n.token_ids, n.correct) for n in tree.nodes] == [texts[n.id] for n in tree.nodes]
    assert [sum(len(t.levels[d]) for t in adaptive.trees) for d in (0, 1)] == [6 * 3, 6 * 9]
    # Where the outcomes differ there are more, and it is the simulation's allocation.
    expected = drawn(np.asarray(wide.rewards), (3, 3), 1)
    found = np.full(expected.shape, np.nan)
    found[tuple(map(slice, adaptive.rewards.shape))] = adaptive.rewards
    np.testing.assert_array_equal(found, expected)
    sizes = [len(tree.leaves) for tree in adaptive.trees]
    assert max(sizes[1::2]) < 9 < max(sizes[0::2])


def test_a_ragged_tree_is_the_same_after_writing_and_reading_and_a_damaged_one_refused(adaptive):
    first = adaptive.trees[contested(adaptive)]
    record = json.loads(json.dumps(first.to_record()))
    assert Tree.from_record(record) == first and record["ragged"]
    branches = record["branches"]
    for damage in ({"ragged": False}, {"branches": [1, 1]}, {"nodes": record["nodes"][::-1]}):
        with pytest.raises(ValueError):
            Tree.from_record(record | damage)
    without = [node for node in record["nodes"] if node["parent"] != record["nodes"][0]["id"]]
    with pytest.raises(ValueError):
        Tree.from_record(record | {"nodes": without})
    assert branches == [3, 3]


def test_an_interrupted_search_is_resumed_to_the_same_bytes(tmp_path, monkeypatch):
    search_fields = {"search.spare": 1, "search.block": 2, "task.num_train": 4}
    made = test_options.base(**search_fields, **{"pipeline.roles": to_dict(two_roles(3))["roles"]})
    whole = test_options.written(test_options.searched)(made, tmp_path / "whole")
    real, calls = malt.search, []

    def stops_in_the_second_block(*arguments, **fields):
        calls.append(fields)
        if len(calls) == 2:
            raise InterruptedError
        return real(*arguments, **fields)

    monkeypatch.setattr(malt, "search", stops_in_the_second_block)
    for _ in range(2):
        with test_options.opened(made, tmp_path / "cut") as session:
            try:
                search.search(session, 0)
            except InterruptedError:
                continue
    assert len(calls) == 3
    assert test_options.contents(tmp_path / "cut") == whole
    assert b'"ragged":true' in next(v for k, v in whole.items() if "trees" in k)


def test_processes_that_grade_differently_grow_the_same_trees(monkeypatch):
    """The grades of process 0 decide: a grader with a time limit may give others elsewhere."""
    roles = tuple(RoleConfig(name=name, branch=3) for name in "ab")
    chain = make_chain(PipelineConfig(roles), {"a": "{question}", "b": "{a}"})
    graded = [random_rewards(6, 2, 2, seed=seed) for seed in (0, 1)]
    graded = [np.where(np.isnan(rewards), 0, rewards) for rewards in graded]

    def allocated(rewards: np.ndarray) -> list[int]:
        first, found = forest_of(rewards, CHAINS[2], ragged=(2, 2)), []
        prefixes = [Prefix(Question(t.question_id, "", ""), (), {}) for t in first.trees]

        def expand(siblings, known=None):
            if known:
                found.extend(siblings(0, prefixes))
            return first

        grow(expand, lambda forest, known=None: forest, chain, spare=1)
        return found

    alone = allocated(graded[0])
    assert sum(alone) == 6 * 3 and alone != allocated(graded[1])
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(
        multihost_utils, "broadcast_one_to_all", lambda own: graded[0].reshape(6, 4)
    )
    assert allocated(graded[1]) == alone


def test_all_siblings_are_allocated_and_more_of_them_where_outcomes_vary():
    assert first_pass((3, 1, 8), 2) == (2, 1, 6)
    assert allocate(np.full(5, 0.2), 2, 3).tolist() == [3] * 5  # alike: a fixed tree
    variance = np.random.default_rng(0).random(40) * 0.25
    found = allocate(variance, 2, 3)
    assert found.sum() == 120 and 2 <= found.min() <= found.max() <= 6
    assert (np.diff(found[np.argsort(variance)]) >= 0).all()
    assert allocate(np.array([0.0, 0.2]), 1, 1).tolist() == [1, 1]  # nothing is held back
    # Constant partial rewards do not differ, and a question is never certain.
    same, mixed, right = outcome_variance(np.array([[0.5] * 4, [0, 1, 0, 1], [1.0] * 4]))
    assert 0 < right < mixed and 0 < same < mixed


@pytest.mark.parametrize("backup", ["mean", "max", "soft"])
def test_ragged_values_are_those_of_the_recursive_definition(backup):
    combine = {
        "mean": lambda v: sum(v) / len(v),
        "max": max,
        "soft": lambda v: 0.25 * math.log(sum(math.exp(x / 0.25) for x in v) / len(v)),
    }[backup]
    forest = value_forest(ragged(random_rewards(4, 3, 4, 2)), backup)
    for tree in forest.trees:
        values = {node.id: node.reward for node in tree.leaves}
        for parent, children in reversed(tree.children.items()):
            values[parent] = combine([values[child.id] for child in children])
        for node in tree.nodes:
            assert node.value == pytest.approx(values[node.id], abs=2e-6)
            assert node.label == (node.value > 0.5)
    full = jnp.asarray(np.random.default_rng(1).integers(0, 2, (3, 2, 3)).astype(np.float32))
    for one, other in zip(back_up(full, backup), back_up_ragged(full, backup), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_signals_of_ragged_trees_are_those_of_each_prefix():
    forest = ragged(random_rewards(4, 3, 4, 2))
    signals = node_signals(forest)
    for tree in forest.trees:
        share = {None: 1.0}
        for parent, siblings in tree.children.items():
            values = [node.value for node in siblings]
            for node in siblings:
                share[node.id] = share[parent] / len(siblings)
                others = [other.value for other in siblings if other is not node]
                differ = max(values) - min(values) >= EQUAL
                expected = node.value - np.mean(others) if others and differ else 0.0
                assert signals[node.id]["advantage"] == pytest.approx(expected, abs=3e-6)
                expected = expected / np.std(values) if differ else 0.0
                assert signals[node.id]["normalised"] == pytest.approx(expected, abs=3e-5)
        below = {leaf.id: {leaf.id} for leaf in tree.leaves}
        for parent, siblings in reversed(tree.children.items()):
            below[parent] = set().union(*(below[node.id] for node in siblings))
        reward = {leaf.id: leaf.reward for leaf in tree.leaves}
        for node in tree.nodes:
            rest = below[None] - below[node.id]
            means = [
                sum(share[leaf] * reward[leaf] for leaf in some) / sum(map(share.get, some))
                for some in (below[node.id], rest or below[node.id])
            ]
            assert signals[node.id]["global"] == pytest.approx(means[0] - means[1], abs=1e-5)
            assert ("confidence" in signals[node.id]) == (node.reward is None)


def test_signals_of_a_ragged_tree_that_is_full_are_those_of_the_fixed_one():
    rewards = np.random.default_rng(3).integers(0, 2, (4, 3, 4, 2)).astype(np.float32)
    fixed, same = node_signals(forest_of(rewards, CHAINS[3])), node_signals(ragged(rewards))
    for node in fixed:
        assert same[node] == pytest.approx(fixed[node], abs=2e-6)


def test_role_data_of_ragged_trees_pairs_siblings_only():
    forest = ragged(random_rewards(4, 3, 4, 2))
    nodes = {node.id: node for tree in forest.trees for node in tree.nodes}
    for learned in malt.label(forest).values():
        assert learned.dpo and learned.sft and learned.pg
        for pair in learned.dpo:
            chosen, rejected = nodes[pair.chosen_node_id], nodes[pair.rejected_node_id]
            assert chosen.parent == rejected.parent and chosen.label and not rejected.label


def test_imported_ragged_trees_are_completed_and_gaps_are_named(adaptive):
    session = test_options.shared_session()
    pipeline = make_chain(two_roles(3), {})
    place = contested(adaptive)
    tree, question = adaptive.trees[place], TASK.load("train", limit=6)[place]
    nodes = [{"id": node.id, "completion": node.completion or "?"} for node in tree.nodes]
    record = {"question_id": tree.question_id, "nodes": nodes, "ragged": True}
    made = complete(record, question, pipeline, session.model.tokenizer, 256)
    assert [node.id for node in made.nodes] == [node.id for node in tree.nodes] and made.ragged
    gap = [node for node in nodes if "/g1" not in node["id"]]
    with pytest.raises(ValueError, match="/g2 is none of this pipeline's"):
        complete(record | {"nodes": gap}, question, pipeline, session.model.tokenizer, 256)


@pytest.fixture(scope="module")
def planted() -> tuple[np.ndarray, np.ndarray]:
    """Rewards and true values of critiques, where only the draft matters and half are settled."""

    @jax.jit  # one program, because each operation of its own would be compiled by itself
    def made(key):
        found = plant(key, 600, (6, 6, 6), EFFECTS["draft"], settled=0.5)
        return found.rewards, found.values[1]

    return tuple(map(np.asarray, made(jax.random.key(0))))


def test_adaptive_trees_hold_more_contrast_at_equal_calls_and_values_stay_nearly_unbiased(planted):
    rewards, true = planted
    found = []
    for spare in (0, 1):
        leaves = drawn(rewards, (3, 3, 3), spare)
        assert (~np.isnan(leaves)).sum() == 600 * 27
        values = np.asarray(back_up_ragged(jnp.asarray(leaves))[1])
        both = (values > 0.5).any(-1) & (values <= 0.5).any(-1)
        error = (values - true)[:, :2, :2]  # of the nodes that both have
        outward = np.sign(true - 0.5)[:, :2, :2] * error
        found.append((both.sum(), np.sqrt((error**2).mean()), outward.mean()))
    fixed, adaptive = found
    assert adaptive[0] > 1.2 * fixed[0]
    assert adaptive[1] < 1.02 * fixed[1] and abs(adaptive[2]) < 0.015


def test_contrast_by_chance_of_ragged_trees_is_what_turns_without_effect_show(planted):
    leaves = drawn(planted[0], (3, 3, 3), 1)[:200]
    one = contrast(ragged(leaves.astype(np.float32)).trees)["verifier"]
    # Two standard errors of a share of 600 prefixes are 0.03.
    assert one["contrast"] > 0.1
    assert one["contrast"] - one["contrast_by_chance"] == pytest.approx(0, abs=0.04)


def test_how_a_policy_behaves_is_measured_with_equal_weight_of_questions():
    rewards = np.random.default_rng(0).integers(0, 2, (2, 2, 2, 2)).astype(np.float32)
    # The first question has every one of its siblings twice.
    wide = np.full((2, 4, 4, 4), np.nan, np.float32)
    wide[0], wide[1, :2, :2, :2] = np.tile(rewards[0], (2, 2, 2)), rewards[1]
    said = {"g0": "#1", "g2": "#1", "v0": "a long critique", "v2": "a long critique"}
    fixed = contrast(forest_of(rewards, CHAINS[3], said=said).trees)
    adaptive = contrast(forest_of(wide, CHAINS[3], said=said, ragged=(2, 2, 2)).trees)
    for role, one in fixed.items():
        for name in ("right_after_wrong", "wrong_after_right", "tokens", "unread"):
            assert adaptive[role][name] == pytest.approx(one[name], abs=1e-6), (role, name)
    assert adaptive["verifier"]["prefixes"] == 6 > fixed["verifier"]["prefixes"]
