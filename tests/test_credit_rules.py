"""What each credit rule selects, against its definition and, for the published one, a golden."""

import hashlib
import json
from dataclasses import asdict

import numpy as np
import pytest

import malt_jax as malt
from credit_trees import CHAINS, forest_of
from malt_jax import config
from malt_jax.config.data import DataConfig
from malt_jax.config.evaluation import Ablation
from malt_jax.config.pipeline import PipelineConfig, RoleConfig
from malt_jax.config.reading import assign, to_dict
from malt_jax.config.training import DpoConfig, TrainConfig
from malt_jax.credit.rules import RULES, get_rule, in_training
from malt_jax.credit.signals import node_signals
from malt_jax.data.role_data import role_data
from malt_jax.errors import UserError
from malt_jax.progress import Progress
from malt_jax.stages.session import Session
from malt_jax.stages.variants import planned, shared_stages, varied
from malt_jax.tree.values import value_forest

ROLES = CHAINS[3]
GOLDEN = {
    ("positives", "random"): "ea9f7d86b0408b72",
    ("positives", "best_worst"): "c3b6f08f97e1be8c",
    ("positives", "all"): "530c76a478d2bdb7",
    ("pairs", "random"): "51840d36921a6146",
    ("pairs", "best_worst"): "3d84807282342267",
    ("pairs", "all"): "6b3107529f44edfb",
}
"""SHA-256 of the published rule's role data, made by the code before there was any other rule."""


def drawn(depth):
    """Trees of mixed difficulty, with repeated texts and turns cut at their limit."""
    rng = np.random.default_rng(depth)
    branches = (3, 3, 4, 2)[:depth]
    right = rng.random((6, *branches)) < rng.random((6, *[1] * depth))
    said = {"v0": "ok", "v2": "ok", "r1": "same", "r2": "same"}
    return forest_of(right.astype(np.float32), CHAINS[depth], said=said, lengths=7)


@pytest.mark.parametrize(("sft", "pairs"), GOLDEN)
def test_published_role_data_are_what_they_were_to_the_byte(sft, pairs):
    sha = hashlib.sha256()
    for depth in CHAINS:
        forest = drawn(depth)
        data = role_data(forest.trees, forest.roles, DataConfig(sft=sft, pairs=pairs), 3)
        for role, d in data.items():
            records = [[example.to_record() for example in rows] for rows in (d.sft, d.dpo)]
            sha.update(json.dumps([role, *records, dict(d.counts)]).encode())
    assert sha.hexdigest()[:16] == GOLDEN[sft, pairs]


def selected(rule, forest=None):
    """By role: ids of positives, pairs, and (id, label) of KTO's nodes, repeats and cuts aside."""
    forest = forest or forest_of(drawn(3).rewards, ROLES)
    data = malt.label(forest, rule=rule)
    return {
        role: (
            {e.node_id for e in d.sft},
            {(e.chosen_node_id, e.rejected_node_id) for e in d.dpo},
            {(e.node_id, e.label) for e in d.kto},
        )
        for role, d in data.items()
    }


def families(forest):
    for tree in forest.trees:
        for siblings in tree.children.values():
            for node in siblings:
                rest = [s.value for s in siblings if s is not node]
                yield node, node.value - sum(rest) / len(rest)


def test_each_rule_selects_the_nodes_of_its_definition():
    forest = forest_of(drawn(3).rewards, ROLES)
    nodes = list(families(forest))
    better = {node.id for node, a in nodes if a > 1e-5}
    worse = {node.id for node, a in nodes if a < -1e-5}
    above = {node.id for node, _ in nodes if node.value > 0.5}
    assert above - better and better - above and worse & above  # the rules do differ here
    expected = {
        "published": (above, {n.id for n, _ in nodes} - above),
        "advantage": (better, worse),
        "both": (above & better, worse - above),
    }
    for rule, (positive, negative) in expected.items():
        found = selected(rule, forest).values()
        assert set().union(*(sft for sft, _, _ in found)) == positive, rule
        unpaired = set().union(*(kto for _, _, kto in found))
        assert unpaired == {(n, True) for n in positive} | {(n, False) for n in negative}, rule
        for _, pairs, _ in found:
            assert {c for c, _ in pairs} <= positive and {r for _, r in pairs} <= negative


@pytest.mark.parametrize("rule", ["published", "advantage", "both"])
def test_every_pair_is_of_siblings_and_the_chosen_one_is_worth_more(rule):
    for d in malt.label(drawn(3), rule=rule).values():
        for pair in d.dpo:
            assert pair.chosen_value > pair.rejected_value and pair.margin == 0.0
            assert pair.chosen_node_id.rsplit("/", 1)[0] == pair.rejected_node_id.rsplit("/", 1)[0]


def test_a_turn_that_changed_nothing_teaches_nothing_by_advantage():
    for rule in ("advantage", "both"):
        assert not any(
            map(any, selected(rule, forest_of(np.ones((2, 3, 2, 2), np.float32), ROLES)).values())
        )


def test_weights_follow_the_advantage_and_have_a_mean_of_one():
    forest = drawn(3)
    signals = node_signals(forest)
    for d in malt.label(forest, rule="weighted").values():
        assert np.mean([e.weight for e in d.sft]) == pytest.approx(1, abs=1e-5)
        ratios = [e.weight / signals[e.node_id]["advantage"] for e in d.sft]
        np.testing.assert_allclose(ratios, ratios[0], rtol=1e-4)
        for example in d.kto:
            assert (signals[example.node_id]["advantage"] > 0) == example.label
    inner, leaves = (malt.label(forest, rule="confident")[role] for role in ("verifier", "refiner"))
    assert len({e.weight for e in inner.sft}) > 1 and {e.weight for e in leaves.sft} == {1.0}


def test_odpo_asks_for_the_gap_and_selects_as_published():
    for one, other in zip(
        malt.label(drawn(3)).values(), malt.label(drawn(3), rule="odpo").values(), strict=True
    ):
        assert one.sft == other.sft and [p.id for p in one.dpo] == [p.id for p in other.dpo]
        for pair in other.dpo:
            gap = pair.chosen_value - pair.rejected_value
            assert pair.margin == pytest.approx(gap) and "margin" in pair.to_record()


def test_narrow_pairs_are_left_out():
    def gaps(least):
        data = role_data(drawn(3).trees, ROLES, DataConfig(pairs="all", min_gap=least), 0)
        return [p.chosen_value - p.rejected_value for p in data["verifier"].dpo]

    assert min(gaps(0.0)) < 0.6 <= min(gaps(0.6)) and sum(g >= 0.6 for g in gaps(0.0)) == len(
        gaps(0.6)
    )


@pytest.mark.parametrize("kind", ["sibling", "normalised", "global"])
def test_the_policy_gradient_gets_every_node_with_an_advantage(kind):
    forest = drawn(3)
    signals, name = node_signals(forest), {"sibling": "advantage"}.get(kind, kind)
    data = role_data(forest.trees, ROLES, DataConfig(advantage=kind), 0)
    found = {e.node_id: e for d in data.values() for e in d.pg}
    nodes = {node.id: node for tree in forest.trees for node in tree.nodes}
    assert {n: e.advantage for n, e in found.items()} == {
        n: s[name] for n, s in signals.items() if s[name] != 0
    }
    for node, example in found.items():
        assert example.logprobs == nodes[node].logprobs
        assert len(example.logprobs) == len(example.completion_ids)


@pytest.mark.parametrize("name", RULES)
def test_a_rule_s_settings_make_its_config_whatever_the_config_was(name):
    rule = get_rule(name)
    data = to_dict(config.Config())
    # As left by another rule; how many pairs there are is not the rule's business.
    data["data"] |= {"positives": "both", "margins": "gap", "weights": "confidence"}
    data["data"] |= {"pairs_per_prefix": 2, "advantage": "global"}
    data["train"]["dpo"]["offset"] = 0.5
    data["pipeline"]["roles"][2]["train"] = "pg"
    before = config.from_dict(data)
    for field, value in rule.settings(before.pipeline).items():
        data = assign(data, field, value)
    made = config.from_dict(data)
    assert made.data == rule.selection(DataConfig(pairs_per_prefix=2))
    assert [role.train for role in made.pipeline.roles] == ["sft", rule.train, rule.train]
    assert rule.data.items() <= asdict(made.data).items()
    assert made.train.dpo.offset == (1.0 if name == "odpo" else 0.0)


@pytest.mark.parametrize(
    ("rule", "changes", "kept"),
    [
        ("odpo", {}, {"lora": {"rank": 4}, "sft": {"epochs": 3}, "dpo": {"offset": 1.0}}),
        ("published", {}, {"lora": {"rank": 4}, "sft": {"epochs": 3}, "dpo": {"offset": 0.0}}),
        ("kto", {}, {"lora": {"rank": 4}, "sft": {"epochs": 3}}),
        ("pg", {}, {"lora": {"rank": 4}}),
        ("pg", {"train": "sft+pg"}, {"lora": {"rank": 4}, "sft": {"epochs": 3}}),
        ("kto", {"train": "dpo"}, {"lora": {"rank": 4}, "dpo": {"offset": 0.0}}),
        ("kto", {"training": {}}, {}),
        ("kto", {"training.lora.rank": 2}, {"lora": {"rank": 2}, "sft": {"epochs": 3}}),
    ],
)  # fmt: skip
def test_in_an_ablation_roles_keep_their_own_fields_of_the_phases_that_they_learn_by(
    rule, changes, kept
):
    data = to_dict(config.Config())
    own = {"lora": {"rank": 4}, "sft": {"epochs": 3}, "dpo": {"offset": 0.5}}
    data["pipeline"]["roles"][1]["training"] = own
    data["data"]["margins"], data["train"]["dpo"]["offset"] = "gap", 0.5
    # The first role's fields of SFT are the STaR single agent's too.
    first = {"sft": {"epochs": 5}}
    data["pipeline"]["roles"][0] |= {"training": first, "train": "sft+dpo"}
    changes = {f"pipeline.roles.1.{name}": value for name, value in changes.items()}
    made = varied(config.from_dict(data), Ablation("a", set=changes, rule=rule)).pipeline.roles
    assert [role.training for role in made] == [first, kept, {}]


def test_fields_of_an_ablation_that_have_no_effect_are_refused():
    changes = {"pipeline.roles.1.training.dpo.beta": 0.5}
    with pytest.raises(UserError, match=r"training.dpo: train: pg has no such phase"):
        varied(config.Config(), Ablation("a", set=changes, rule="pg"))


def test_a_rule_s_offset_is_that_of_roles_with_fields_of_their_own_too():
    pipeline = PipelineConfig((RoleConfig("a", training={"dpo": {"offset": 0.5, "beta": 0.4}}),))
    for rule, offset in (("odpo", 1.0), ("published", 0.0)):
        _, made, train = in_training(None, {"a": rule}, pipeline, TrainConfig())
        assert made.roles[0].training == {"dpo": {"offset": offset, "beta": 0.4}}
        assert train.dpo.offset == offset
    _, made, _ = in_training(None, {"a": None}, pipeline, TrainConfig())
    assert made is pipeline
    with pytest.raises(ValueError, match="rule: the fields of dpo do not fit it"):
        in_training(None, {"a": "odpo"}, pipeline, TrainConfig(dpo=DpoConfig(loss="ipo")))
    with pytest.raises(ValueError, match="the examples of b were selected without a rule"):
        in_training(None, {"a": "kto", "b": None}, pipeline, TrainConfig())


def test_a_forest_of_another_threshold_is_refused_where_labels_are_made_anew():
    forest = forest_of(np.array([[[[1, 0, 1], [0, 0, 0]]]], np.float32), ROLES)
    forest = value_forest(forest, threshold=0.7)
    with pytest.raises(ValueError, match=r"threshold: found 0\.5, but node Q0/g0/v0"):
        malt.label(forest, rule="both")
    assert malt.label(forest, rule="both", threshold=0.7) and malt.label(forest)


def test_an_unknown_rule_is_refused_with_the_known_ones():
    with pytest.raises(UserError, match=r"found 'bothh', allowed: published.* Did you mean 'both'"):
        malt.label(drawn(1), rule="bothh")


def test_a_rule_is_an_ablation_on_the_run_s_own_trees():
    rules = [
        {"name": "b", "rule": "both"},
        {"name": "k", "rule": "kto", "set": {"search.threshold": 0.6}},
    ]
    made = config.from_dict({"task": {"num_train": 4, "num_eval": 4}, "ablations": rules})
    _, variants = planned(Session(made, None, Progress(quiet=True)))
    both, kto = (variant.config for variant in variants)
    assert both.data.positives == "both" and both.pipeline == made.pipeline
    assert [role.train for role in kto.pipeline.roles] == ["sft", "sft+kto", "sft+kto"]
    assert kto.search.threshold == 0.6 and kto.data == made.data
    assert [v.system.label for v in variants] == [
        "MALT, rule both", "MALT, rule kto, search.threshold=0.6"
    ]  # fmt: skip
    for variant in variants:
        assert list(shared_stages(made, variant.config)) == ["search/000"]
    with pytest.raises(UserError, match=r"ablations\.x: rule: found 'none'"):
        wrong = config.from_dict({"ablations": [{"name": "x", "rule": "none"}]})
        planned(Session(wrong, None, Progress(quiet=True)))
