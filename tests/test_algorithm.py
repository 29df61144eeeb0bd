"""The method as three functions: what they return, and that they are those of a run directory."""

from __future__ import annotations

import importlib.util
import json
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from flax import nnx

import malt_jax as malt
import tiny
from malt_jax.config.lora import LoraConfig
from malt_jax.config.pipeline import PipelineConfig, RoleConfig
from malt_jax.config.sampler import SamplerConfig
from malt_jax.config.training import DpoConfig, KtoConfig, PgConfig, SftConfig
from malt_jax.data.role_data import RoleData, tree_counts
from malt_jax.sampling.sampler import Sampler
from malt_jax.tasks.base import Grade
from malt_jax.tasks.rewards import Rewarded
from malt_jax.training.saver import MemorySaver
from malt_jax.training.weights import initial_weights
from malt_jax.tree.node import Forest, Tree
from malt_jax.tree.roles import make_chain
from malt_jax.tree.streaming import expand_blocks

ROOT = Path(__file__).parents[1]
PIPELINE = PipelineConfig(
    tuple(
        RoleConfig(name, branch=2, temperature=1.0, max_new_tokens=8, answers=name != "verifier")
        for name in ("generator", "verifier", "refiner")
    )
)


@pytest.fixture(autouse=True, scope="module")
def one_batch():
    """Samplers that are not said otherwise compile one decode program per stream, not five."""
    one = partial(SamplerConfig, **tiny.ONE_BATCH)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("malt_jax.sampling.sampler.SamplerConfig", one)
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return malt.load_model(tiny.write_model(tmp_path_factory.mktemp("tiny") / "model", seed=3))


@pytest.fixture(scope="module")
def forest(model):
    return malt.search(model, tiny.LUCK.load("train", limit=4), PIPELINE, task=tiny.LUCK)


def test_the_example_script_is_short_and_runs_the_whole_method():
    path = ROOT / "scripts" / "method.py"
    assert len(path.read_text().splitlines()) <= 40
    spec = importlib.util.spec_from_file_location("method", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    before, after = script.main(train=6, held_out=4)
    assert 0 <= before <= 1 and 0 <= after <= 1


def test_the_page_of_the_method_is_a_page():
    lines = (ROOT / "malt_jax" / "algorithm.py").read_text().splitlines()
    assert len(lines) <= 170


def test_a_forest_has_the_arrays_of_its_nodes(forest):
    assert forest.rewards.shape == (4, 2, 2, 2)
    assert [values.shape for values in forest.values] == [(4, 2), (4, 2, 2), (4, 2, 2, 2)]
    np.testing.assert_allclose(forest.values[1], forest.rewards.mean(-1), atol=1e-6)
    tokens, logprobs = forest.tokens(2), forest.logprobs(2)
    assert tokens.shape == logprobs.shape and tokens.shape[:4] == (4, 2, 2, 2)
    node = forest.trees[1].nodes[2 + 4 + 3]
    assert tokens[1, 0, 1, 1][: len(node.token_ids)].tolist() == list(node.token_ids)
    assert node.id == "train1/g0/v1/r1"


def test_a_tree_is_the_same_after_writing_and_reading(forest):
    for tree in forest.trees:
        assert Tree.from_record(json.loads(json.dumps(tree.to_record()))) == tree


@pytest.mark.parametrize(
    "damage",
    [
        lambda r: r.pop("nodes"),
        lambda r: r["nodes"].pop(),
        lambda r: r["nodes"].append(r["nodes"][0]),
        lambda r: r["nodes"][0].update(parent="elsewhere"),
        lambda r: r["nodes"][-1].pop("reward"),
        lambda r: r["nodes"][-1].update(reward=1.5),
        lambda r: r["nodes"][0].update(reward=1),
        lambda r: r["nodes"][0].update(token_ids=["a"]),
        lambda r: r["nodes"][0].update(value="high"),
        lambda r: r.update(branches=[2, 2]),
        lambda r: r.update(branches=[2, 2, 10**9]),
    ],
)
def test_a_record_that_is_no_tree_is_refused(forest, damage):
    record = json.loads(json.dumps(forest.trees[0].to_record()))
    damage(record)
    with pytest.raises(ValueError):
        Tree.from_record(record)


def test_a_tree_does_not_depend_on_the_pool_it_is_searched_in(model, forest):
    questions = tiny.LUCK.load("train", limit=4)
    alone = malt.search(model, questions[2:3], PIPELINE, task=tiny.LUCK)
    ours, theirs = forest.trees[2], alone.trees[0]
    assert [n.token_ids for n in ours.nodes] == [n.token_ids for n in theirs.nodes]


def test_a_search_that_waits_for_no_level_and_no_block_has_the_same_trees(model, forest):
    questions, task = tiny.LUCK.load("train", limit=4), tiny.LUCK
    config = SamplerConfig(
        rows=4, streams=1, prefix_buckets=(64,), new_token_buckets=(8,), cache_dir=None
    )
    blocks = expand_blocks(
        model,
        Sampler(model, config),
        [questions[:1], questions[1:]],
        make_chain(PIPELINE, task.templates),
        adapters={},
        seed=0,
        round=0,
    )
    streamed = [tree for block in blocks for tree in block.trees]
    assert [tree.question_id for tree in streamed] == [q.id for q in questions]
    for ours, theirs in zip(streamed, forest.trees, strict=True):
        for a, b in zip(ours.nodes, theirs.nodes, strict=True):
            assert (a.id, a.prompt_ids, a.token_ids) == (b.id, b.prompt_ids, b.token_ids)
            np.testing.assert_allclose(a.logprobs, b.logprobs, atol=2e-5)


def test_training_gives_every_role_the_weights_its_data_asks_for(model, forest):
    data = malt.label(forest)
    told = []
    policies = malt.train(
        model,
        data,
        lora=LoraConfig(rank=4),
        sft=SftConfig(epochs=1),
        on_phase=lambda name, outcome: told.append((name, outcome.steps)),
    )
    assert set(policies) == {"generator", "verifier", "refiner"}
    expected = [(r, len(d.sft) > 0) for r, d in data.items()]
    assert {name for name, _ in told} == {role for role, some in expected if some}
    phases = [name for name, _ in told]
    assert phases.count("generator") <= 1  # the published generator learns by SFT only
    after = malt.search(
        model, tiny.LUCK.load("eval", limit=1), PIPELINE, task=tiny.LUCK, adapters=policies
    )
    assert len(after.trees[0].nodes) == 2 + 4 + 8


def test_one_policy_for_all_roles_is_trained_once(model, forest):
    policies = malt.train(
        model,
        malt.label(forest),
        sharing="shared",
        lora=LoraConfig(rank=4),
        sft=SftConfig(epochs=1),
    )
    first, *others = policies.values()
    assert all(other is first for other in others)


def test_full_weights_come_back_as_float32_masters_and_can_be_searched_with(tmp_path):
    folder = tiny.write_model(tmp_path / "model")
    model = malt.load_model(folder, dtype="bfloat16")
    questions = tiny.LUCK.load("train", limit=3)
    data = malt.label(malt.search(model, questions, PIPELINE, task=tiny.LUCK))
    roles = {role: RoleData(sft=learned.sft) for role, learned in data.items() if learned.sft}
    start = dict.fromkeys(roles, model.params)
    policies = malt.train(model, roles, start=start, sft=SftConfig(epochs=1))
    for weights in policies.values():
        assert {leaf.dtype.name for leaf in jax.tree.leaves(weights)} == {"float32"}
    searched = malt.search(model, questions, PIPELINE, task=tiny.LUCK, adapters=policies)
    assert len(searched.trees) == 3


def test_partial_rewards_are_backed_up_and_are_not_all_right(model):
    class Half(tiny.LuckGrader):
        def grade(self, texts, questions):
            return [Grade("1", False, reward=0.25) for _ in texts]

    task = replace(tiny.LUCK, grader=Half())
    forest = malt.search(model, tiny.LUCK.load("train", limit=2), PIPELINE, task=task)
    assert np.all(np.asarray(forest.values[0]) == 0.25)
    assert tree_counts(forest.trees)["mixed"] == 2


def test_rewards_of_a_function_are_backed_up_and_right_is_what_the_grader_says(model):
    asked = set()

    def reward(question, text, parsed):
        asked.add(question.id)
        return 0.9 if parsed == question.answer else len(text) / 20

    task = replace(tiny.LUCK, grader=Rewarded(tiny.LUCK.grader, reward))
    forest = malt.search(model, tiny.LUCK.load("train", limit=2), PIPELINE, task=task)
    leaves = [leaf for tree in forest.trees for leaf in tree.leaves]
    assert asked == {"train0", "train1"} and len({leaf.reward for leaf in leaves}) > 2
    for leaf in leaves:
        assert leaf.correct == (leaf.parsed == "0")
        assert leaf.reward == (0.9 if leaf.correct else len(leaf.completion) / 20)
    for level, axes in enumerate([(-2, -1), (-1,)]):
        np.testing.assert_allclose(forest.values[level], forest.rewards.mean(axes), atol=1e-6)
    read = [Tree.from_record(json.loads(json.dumps(tree.to_record()))) for tree in forest.trees]
    assert read == list(forest.trees)


def test_an_adapter_and_a_model_that_only_a_run_loads_are_refused(model, forest):
    first, second, third = PIPELINE.roles
    for roles, told in (
        ((replace(first, adapter="x"), second, third), "generator: its adapter 'x' would be"),
        ((first, replace(second, model={"path": "y"}), third), "verifier: its model {'path': 'y'}"),
    ):
        with pytest.raises(ValueError, match=re.escape(told)):
            malt.search(model, [], PipelineConfig(roles), task=tiny.LUCK)
    pipeline = PipelineConfig((replace(first, adapter="x"), second, third))
    with pytest.raises(ValueError, match="generator: its adapter 'x' would be left out"):
        malt.train(model, malt.label(forest), pipeline=pipeline)


def test_a_saver_is_for_one_phase_of_one_policy(model, forest):
    with pytest.raises(ValueError, match="one phase of one policy"):
        malt.train(model, malt.label(forest), saver=MemorySaver())


def test_an_empty_pool_is_an_empty_forest(model):
    assert malt.search(model, [], PIPELINE, task=tiny.LUCK) == Forest([])


def test_a_shared_policy_starts_from_the_weights_of_any_of_its_roles(model):
    weights, data = nnx.State({"w": np.ones(2)}), {"verifier": RoleData()}
    found = malt.train(model, data, sharing="shared", start={"refiner": weights})
    assert found["verifier"] is weights
    with pytest.raises(ValueError, match="start: found judge, allowed: verifier, generator"):
        malt.train(model, data, start={"judge": weights})


@pytest.fixture
def trained_by(monkeypatch):
    """The configs of the phases that `train` comes to, without training by them."""
    seen = []

    def record(base, policy, examples, config, **_):
        seen.append(config)
        return SimpleNamespace(trainable=policy)

    monkeypatch.setattr("malt_jax.algorithm.fit.train_phase", record)
    return seen


@pytest.mark.parametrize("again", [False, True], ids=["", "given to train too"])
@pytest.mark.parametrize(
    "rule, kind", [("kto", KtoConfig), ("pg", PgConfig), ("odpo", DpoConfig), (None, DpoConfig)]
)
def test_a_rule_given_to_label_is_the_one_that_train_follows(
    trained_by, model, forest, rule, kind, again
):
    """If only `label` knew the rule, a policy gradient would be DPO as published, unsaid."""
    malt.train(model, malt.label(forest, rule=rule), rule=rule if again else None)
    assert {type(config) for config in trained_by} == {SftConfig, kind}
    offsets = {config.offset for config in trained_by if isinstance(config, DpoConfig)}
    assert offsets <= {1.0 if rule == "odpo" else 0.0}


def test_a_rule_is_followed_by_roles_that_no_pipeline_names(trained_by, model, forest):
    learned = malt.label(forest, rule="pg")["verifier"]
    malt.train(model, {"critic": learned})
    assert {type(config) for config in trained_by} == {PgConfig}


@pytest.mark.parametrize(
    "labelled, asked, words",
    [
        ("kto", "pg", "found 'pg', but the examples were selected by 'kto'; leave the rule out"),
        ("advantage", "published", "selected by 'advantage'"),
        (None, "odpo", "found 'odpo', which sets margins .* label the forest with rule='odpo'"),
    ],
)
def test_a_rule_other_than_that_of_the_data_is_refused(model, forest, labelled, asked, words):
    data = malt.label(forest, rule=labelled)
    with pytest.raises(ValueError, match=words):
        malt.train(model, data, rule=asked)


def test_data_of_several_rules_are_refused(model, forest):
    data = malt.label(forest, rule="kto")
    data["refiner"] = malt.label(forest, rule="pg")["refiner"]
    with pytest.raises(ValueError, match="selected by kto and pg, but one rule trains all roles"):
        malt.train(model, data)


def test_misspelt_choices_are_refused(model, forest):
    """Not trained by another choice."""
    data = malt.label(forest)
    with pytest.raises(ValueError, match="sharing: found 'Shared', allowed: adapters, shared"):
        malt.train(model, data, sharing="Shared")
    start = {role: initial_weights(model, LoraConfig(rank=2)) for role in forest.roles}
    with pytest.raises(ValueError, match="different weights for shared"):
        malt.train(model, data, sharing="shared", start=start)
