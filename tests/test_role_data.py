"""What each role learns from, checked on small trees written by hand."""

import itertools
from dataclasses import replace

import pytest

from malt_jax.config.data import DataConfig
from malt_jax.data.role_data import RoleData, role_data, star_data, tree_counts
from malt_jax.stages.label import count, lines
from malt_jax.tree.node import Forest, Node, Tree

ROLES = ("generator", "verifier", "refiner")


def tree(rewards: list[list[list[int]]], question: str = "Q0", finish: str = "eos") -> Tree:
    """A tree with the given leaf rewards; texts are the node's own path."""
    nodes = []

    def add(node_id, role, parent, value, **more):
        nodes.append(
            Node(
                id=node_id,
                role=role,
                parent=parent,
                prompt=f"{role} {parent}",
                prompt_ids=(1, hash((role, parent)) % 97),
                cut=0,
                completion=node_id,
                token_ids=(5, *map(ord, node_id), 2),
                logprobs=(),
                finish=finish,
                parsed="1",
                correct=value > 0.5,
                value=value,
                label=value > 0.5,
                **more,
            )
        )

    for i, critiques in enumerate(rewards):
        leaves = list(itertools.chain(*critiques))
        add(f"{question}/g{i}", "generator", None, sum(leaves) / len(leaves))
    for i, critiques in enumerate(rewards):
        for j, leaves in enumerate(critiques):
            add(f"{question}/g{i}/v{j}", "verifier", f"{question}/g{i}", sum(leaves) / len(leaves))
    for i, critiques in enumerate(rewards):
        for j, leaves in enumerate(critiques):
            for k, reward in enumerate(leaves):
                parent = f"{question}/g{i}/v{j}"
                add(f"{parent}/r{k}", "refiner", parent, float(reward), reward=reward)
    branches = (len(rewards), len(rewards[0]), len(rewards[0][0]))
    return Tree(question, question, "1", {}, branches, ROLES, tuple(nodes))


MIXED = tree([[[1, 1], [0, 0]], [[0, 0], [0, 0]]])


@pytest.mark.parametrize("reward", [0, 1])
def test_trees_that_are_all_right_or_all_wrong_give_no_pairs(reward):
    record = tree([[[reward] * 2] * 2] * 2)
    data = role_data([record], ROLES, DataConfig(), seed=0)
    assert all(not rows.dpo for rows in data.values())
    kind = "all_right" if reward else "all_wrong"
    assert tree_counts([record])[kind] == 1


def test_pairs_are_siblings_under_one_prefix_with_a_strict_gap():
    data = role_data([MIXED], ROLES, DataConfig(pairs="all"), seed=0)
    for role in ROLES:
        for pair in data[role].dpo:
            assert pair.chosen_value > 0.5 >= pair.rejected_value
            assert pair.chosen_node_id.rsplit("/", 1)[0] == pair.node_id
            assert pair.rejected_node_id.rsplit("/", 1)[0] == pair.node_id
    assert [len(data[role].dpo) for role in ROLES] == [0, 1, 0]  # V(g0) = 1/2 is negative


def test_one_pair_a_prefix_is_drawn_by_seed_and_by_nothing_else():
    record = tree([[[1, 0, 1, 0]] * 2] * 2)
    one = role_data([record], ROLES, DataConfig(), seed=1)["refiner"].dpo
    assert len(one) == 4 and one == role_data([record], ROLES, DataConfig(), seed=1)["refiner"].dpo
    other = tree([[[0, 1]] * 2] * 2, "Q1")
    joined = role_data([other, record], ROLES, DataConfig(), seed=1)["refiner"].dpo
    assert [pair for pair in joined if pair.question_id == "Q0"] == one
    picks = {
        tuple(p.chosen_node_id for p in role_data([record], ROLES, DataConfig(), s)["refiner"].dpo)
        for s in range(8)
    }
    assert len(picks) > 1


@pytest.mark.parametrize("gap", [0.1, 0.2, 0.3, 0.4])
def test_a_gap_as_wide_as_the_least_one_is_wide_enough(gap):
    for chosen in (0.6, 0.7, 0.8, 0.9):
        record = tree([[[1], [0]]])
        values = {"Q0/g0/v0": chosen, "Q0/g0/v1": round(chosen - gap, 6)}
        nodes = (replace(n, value=values.get(n.id, n.value)) for n in record.nodes)
        record = replace(record, nodes=tuple(nodes))
        pairs = role_data([record], ROLES, DataConfig(min_gap=gap), 0)["verifier"].dpo
        assert len(pairs) == 1
        pairs = role_data([record], ROLES, DataConfig(min_gap=gap + 0.001), 0)["verifier"].dpo
        assert pairs == []


def test_best_worst_takes_the_widest_gap():
    record = tree([[[1, 1, 1], [1, 1, 0], [0, 0, 0], [1, 0, 0]]])
    (pair,) = role_data([record], ROLES, DataConfig(pairs="best_worst"), 0)["verifier"].dpo
    assert (pair.chosen_node_id, pair.rejected_node_id) == ("Q0/g0/v0", "Q0/g0/v2")


def test_a_completion_cut_at_its_limit_is_never_an_example_to_follow():
    record = tree([[[1, 0]] * 2] * 2, finish="length")
    data = role_data([record], ROLES, DataConfig(pairs="all"), 0)
    assert all(not rows.sft and not rows.dpo for rows in data.values())
    assert data["refiner"].counts["positives_cut_at_limit"] == 4
    assert star_data([record], "generator").sft == []


def test_examples_that_mend_something_are_told_from_those_that_let_it_stand():
    mended = role_data([MIXED], ROLES, DataConfig(), 0)
    assert [mended[role].counts["positives_behind_negative"] for role in ROLES] == [0, 1, 0]
    refined = role_data([tree([[[1, 0, 0]]])], ROLES, DataConfig(), 0)
    assert [refined[role].counts["positives_behind_negative"] for role in ROLES] == [0, 0, 1]


def test_a_role_that_only_learns_to_let_things_stand_is_named():
    def told(record):
        data = role_data([record], ROLES, DataConfig(), 0)
        return "\n".join(lines(count(Forest([record]), data, RoleData())))

    approving = told(tree([[[1, 1], [1, 1]], [[0, 0], [0, 0]]]))
    for role in ("verifier", "refiner"):
        assert f"{role}: ALL ITS EXAMPLES FOLLOW WHAT WAS POSITIVE ALREADY" in approving
    assert "generator: ALL" not in approving
    assert "verifier: ALL" not in told(MIXED)


def test_messages_count_the_examples_of_a_role_s_own_phases():
    data = role_data([MIXED], ROLES, DataConfig(), 0)
    counts = count(Forest([MIXED]), data, RoleData())
    role = counts["roles"]["refiner"]
    told = lambda **c: "\n".join(  # noqa: E731
        lines({**counts, "roles": {"refiner": role | c}}, {"refiner": phases})
    )
    none = {"sft": 0, "dpo": 0, "kto": 0, "pg": 0}
    phases = ("kto",)
    assert "nothing to learn" not in told(**none | {"kto": 7}).lower() and "7 unpaired" in told(
        kto=7
    )
    assert "NOTHING TO TRAIN ON" in told(**none | {"pg": 9})
    phases = ("pg",)
    assert "NOTHING TO TRAIN ON" not in told(**none | {"pg": 9})
    assert "refiner: nothing to learn from" in told(**none | {"sft": 5, "dpo": 3})
    phases = ()
    assert "nothing to" not in told(**none).lower()


def test_a_text_with_both_labels_is_left_out_of_kto_and_counted():
    record = tree([[[1, 0, 1]]])
    equal = ("Q0/g0/v0/r0", "Q0/g0/v0/r1")
    nodes = (replace(n, token_ids=(7, 2)) if n.id in equal else n for n in record.nodes)
    data = role_data([replace(record, nodes=tuple(nodes))], ROLES, DataConfig(), 0)["refiner"]
    assert [e.node_id for e in data.kto] == ["Q0/g0/v0/r2"] and data.both_labels == 1


def test_by_advantage_equal_siblings_are_one_turn_with_the_mean_of_their_values():
    record = tree([[[1, 0, 1]]])
    equal = ("Q0/g0/v0/r0", "Q0/g0/v0/r1")
    nodes = (replace(n, token_ids=(7, 2)) if n.id in equal else n for n in record.nodes)
    record = replace(record, nodes=tuple(nodes))
    config = DataConfig(positives="advantage", pairs="all", margins="gap")
    data = role_data([record], ROLES, config, 0)["refiner"]
    # r0 was right and r1 was not, by luck: as one turn they are worth 1/2, less than r2.
    assert {e.node_id: e.label for e in data.kto} == {equal[0]: False, "Q0/g0/v0/r2": True}
    assert {(p.rejected_node_id, p.margin) for p in data.dpo} == {(n, 0.5) for n in equal}
    published = role_data([record], ROLES, DataConfig(), 0)["refiner"]
    assert {e.node_id for e in published.sft} == {equal[0], "Q0/g0/v0/r2"}


@pytest.mark.parametrize(("threshold", "positive"), [(0.5, set()), (0.2, {"v0", "v1"})])
def test_by_both_a_lucky_copy_is_not_positive_by_itself(threshold, positive):
    record = tree([[[1, 1, 0], [0, 0, 0], [0, 0, 0]]])  # of values 2/3, 0 and 0
    equal = ("Q0/g0/v0", "Q0/g0/v1")
    record = replace(record, nodes=tuple(
        replace(n, token_ids=(7, 2) if n.id in equal else n.token_ids, label=n.value > threshold)
        for n in record.nodes
    ))  # fmt: skip
    config = DataConfig(positives="both", pairs="all")
    found = role_data([record], ROLES, config, 0, threshold=threshold)["verifier"]
    # Together the two copies are worth 1/3, more than their sibling.
    assert {e.node_id for e in found.kto if e.label} <= {f"Q0/g0/{n}" for n in positive}
    assert bool(found.sft) == bool(found.dpo) == bool(positive)


def test_a_repeated_example_weighs_as_its_copies_do_on_average():
    # One critique after two equal drafts: it repaired the first one more than the second.
    first, second = [[1, 1], [0, 0], [0, 0]], [[1, 1], [1, 1], [0, 0]]
    weights = []
    for drafts in ([first, second], [second, first]):
        record = tree([*drafts, [[1, 1], [0, 0], [0, 0]]])
        same = {"Q0/g0/v0": (7, 2), "Q0/g1/v0": (7, 2)}
        nodes = [
            replace(n, token_ids=same.get(n.id, n.token_ids), prompt_ids=(1, 5))
            for n in record.nodes
        ]
        data = role_data(
            [replace(record, nodes=tuple(nodes))], ROLES, DataConfig(weights="advantage"), 0
        )
        weights.append({e.completion_ids: e.weight for e in data["verifier"].sft}[7, 2])
    assert weights[0] == weights[1]


def test_equal_texts_under_one_prefix_are_one_example_and_no_pair():
    record = tree([[[1, 0], [1, 1]]])
    equal = ("Q0/g0/v0/r0", "Q0/g0/v0/r1")
    nodes = (replace(n, token_ids=(7, 2)) if n.id in equal else n for n in record.nodes)
    record = replace(record, nodes=tuple(nodes))
    data = role_data([record], ROLES, DataConfig(pairs="all"), 0)["refiner"]
    assert data.counts["pairs_of_equal_text"] == 1 and data.dpo == []
    twin = role_data([record, record], ROLES, DataConfig(), 0)["refiner"]
    assert twin.counts["repeats"] == len(data.sft) == len(twin.sft)


def test_examples_keep_their_end_token():
    data = role_data([MIXED], ROLES, DataConfig(pairs="all"), 0)
    for rows in data.values():
        assert all(row.completion_ids[-1] == 2 for row in rows.sft)
        assert all(row.chosen_ids[-1] == row.rejected_ids[-1] == 2 for row in rows.dpo)


def test_pairs_only_keeps_chosen_nodes_as_sft_examples():
    config = DataConfig(sft="pairs", pairs="all")
    data = role_data([MIXED], ROLES, config, 0)["verifier"]
    assert [row.node_id for row in data.sft] == ["Q0/g0/v0"]


def test_a_repeat_that_earned_no_credit_counts_in_the_mean_of_its_weight():
    """One critique after two equal drafts: it helped after the one and not after the other."""
    one = tree([[[1, 1], [0, 0]], [[1, 1], [1, 1]]])
    same = {"Q0/g1/v0": "Q0/g0/v0", "Q0/g1/v1": "Q0/g0/v1"}
    by_id = {node.id: node for node in one.nodes}
    nodes = tuple(
        replace(
            node,
            prompt_ids=by_id[same[node.id]].prompt_ids,
            token_ids=by_id[same[node.id]].token_ids,
        )
        if node.id in same
        else node
        for node in one.nodes
    )
    once = tree([[[1, 1], [0, 0]], [[0, 0], [0, 0]]], question="Q1")
    config = DataConfig(weights="advantage")
    data = role_data([replace(one, nodes=nodes), once], ROLES, config, seed=0)["verifier"]
    weights = {example.node_id: example.weight for example in data.sft}
    assert weights["Q0/g0/v0"] == pytest.approx(weights["Q1/g0/v0"] / 2, abs=1e-5)
