"""A forest that was sampled elsewhere becomes this run's search, or is refused by its line."""

from __future__ import annotations

import copy
import json
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import cli_run
from malt_jax import cli
from malt_jax.config.pipeline import PipelineConfig, RoleConfig
from malt_jax.errors import UserError
from malt_jax.storage import manifest
from malt_jax.storage.jsonl import read_lines
from malt_jax.tasks.base import Question
from malt_jax.tree.outside import complete
from malt_jax.tree.roles import make_chain

FLAGS = cli_run.flags()[:-1]
QUESTION = Question("Q1", "1+1?", "2")
ROLES = tuple(RoleConfig(name=n, branch=b, max_new_tokens=16) for n, b in (("a", 2), ("b", 1)))
CHAIN = make_chain(PipelineConfig(roles=ROLES), {"a": "{question}", "b": "{question} {a}"})


class Letters:
    """A tokenizer with a token for each character, and 0 as its end token."""

    end_ids = (0,)
    thoughts = None

    def encode(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]

    prompt_ids = encode

    def decode(self, ids: list[int]) -> str:
        return "".join(map(chr, ids))


def record() -> dict:
    nodes = [("a1", "no"), ("a0", "yes"), ("a1/b0", "3"), ("a0/b0", "2")]
    return {
        "question_id": "Q1",
        "question": "1+1?",
        "nodes": [{"id": f"Q1/{name}", "completion": text} for name, text in nodes],
    }


def test_what_is_not_given_is_made_as_the_search_makes_it():
    tree = complete(record(), QUESTION, CHAIN, Letters(), 50)
    assert [node.id for node in tree.nodes] == ["Q1/a0", "Q1/a1", "Q1/a0/b0", "Q1/a1/b0"]
    last = tree.nodes[-1]
    assert (last.parent, last.role, last.prompt) == ("Q1/a1", "b", "1+1? no")
    assert last.token_ids == (ord("3"), 0) and last.logprobs == () and last.finish == "eos"


def test_what_is_given_is_kept_and_another_id_of_the_question_is_replaced():
    given = record()
    for node in given["nodes"]:
        node["id"] = node["id"].replace("Q1", "other/7")
    given["question_id"] = "other/7"
    given["nodes"][0] |= {
        "token_ids": [*map(ord, "no")],
        "logprobs": [-1, -0.5],
        "finish": "length",
    }
    node = complete(given, QUESTION, CHAIN, Letters(), 50).nodes[1]
    assert (node.id, node.token_ids, node.finish) == ("Q1/a1", (*map(ord, "no"),), "length")
    assert node.logprobs == (-1.0, -0.5)


WRONG: dict[str, tuple[Callable[[dict], object], str]] = {
    "missing node": (lambda r: r["nodes"].pop(), "Q1/a0/b0 is missing"),
    "node of no role": (lambda r: r["nodes"].append({"id": "Q1/c0"}), "Q1/c0 is none"),
    "node twice": (lambda r: r["nodes"].append(dict(r["nodes"][0])), "comes twice"),
    "no id": (lambda r: r["nodes"].append({}), "id is None"),
    "no text": (lambda r: r["nodes"][0].pop("completion"), "no text"),
    "other finish": (lambda r: r["nodes"][0].update(finish="done"), "'done'"),
    "other role": (lambda r: r["nodes"][0].update(role="b"), "by 'b'"),
    "other prompt": (lambda r: r["nodes"][0].update(prompt="1+1"), "another prompt"),
    "other tokens": (
        lambda r: r["nodes"][0].update(token_ids=[1, 2], finish="stop"),
        "to this model's tokenizer",
    ),
    "tokens of no kind": (lambda r: r["nodes"][0].update(token_ids=[-1]), "not a list of token"),
    "too few logprobs": (
        lambda r: r["nodes"][0].update(token_ids=[*map(ord, "no")], finish="stop", logprobs=[0]),
        "one for each",
    ),
    "logprobs alone": (lambda r: r["nodes"][0].update(logprobs=[0, 0, 0]), "one for each"),
    "positive logprob": (
        lambda r: r["nodes"][0].update(token_ids=[*map(ord, "no")], finish="stop", logprobs=[0, 1]),
        "no log-probability",
    ),
    "no end token": (
        lambda r: r["nodes"][0].update(token_ids=[*map(ord, "no")]),
        "do not end with an end token",
    ),
    "nothing said": (lambda r: r["nodes"][0].update(completion="", finish="stop"), "is empty"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_tree_that_does_not_fit_is_refused_with_its_node(name):
    breaks, message = WRONG[name]
    broken = copy.deepcopy(record())
    breaks(broken)
    with pytest.raises(ValueError, match=message):
        complete(broken, QUESTION, CHAIN, Letters(), 50)


def test_prompts_that_are_too_long_are_refused_or_truncated_as_in_a_search():
    """Whatever the completions' lengths, so that siblings have one prompt."""
    roles = tuple(replace(role, branch=3 - role.branch) for role in ROLES)
    chain = make_chain(PipelineConfig(roles=roles), {"a": "{question}", "b": "{question} {a}"})
    said = {"a0": "a draft of some length", "a0/b0": "2", "a0/b1": "the answer"}
    given = {"nodes": [{"id": id, "completion": text} for id, text in said.items()]}
    with pytest.raises(UserError, match="27 tokens and 24 fit beside the completion"):
        complete(given, QUESTION, chain, Letters(), 40)
    tree = complete(given, QUESTION, chain, Letters(), 40, "truncate")
    assert [node.prompt for node in tree.nodes] == ["1+1?", *["1+1? raft of some length"] * 2]
    assert [node.cut for node in tree.nodes] == [0, 3, 3]
    given["nodes"][2]["completion"] = "an answer that is far beyond its limit"
    with pytest.raises(ValueError, match="a0/b1 has 39 tokens after a prompt of 24"):
        complete(given, QUESTION, chain, Letters(), 40, "truncate")


@pytest.fixture(scope="module")
def trees() -> list[dict]:
    """The trees of a run that has searched by itself."""
    return [r for p in sorted(cli_run.trained().glob("rounds/000/trees/*")) for r in read_lines(p)]


def imported(trees: list[dict], run: Path, capsys) -> str:
    """Labels a new run with these trees in a file; returns what is said if they are refused."""
    file = run.with_suffix(".jsonl")
    file.write_text("".join(json.dumps(tree) + "\n" for tree in trees))
    status = cli.main(["label", *FLAGS, str(run), "--import", str(file)])
    said = capsys.readouterr().err
    assert status == (2 if said else 0), said
    return said


def test_full_records_in_any_order_become_the_search_itself(trees, tmp_path, capsys):
    mixed = copy.deepcopy(trees)
    random.Random(0).shuffle(mixed)
    for tree in mixed:
        random.Random(1).shuffle(tree["nodes"])
    assert imported(mixed, tmp_path / "run", capsys) == ""
    assert list(read_lines(tmp_path / "run/rounds/000/trees/00000.jsonl")) == trees
    for path in cli_run.trained().glob("rounds/000/data/*/*.jsonl"):
        own = tmp_path / "run" / path.relative_to(cli_run.trained())
        assert own.read_bytes() == path.read_bytes()


def test_texts_alone_are_graded_valued_and_trained_on(trees, tmp_path, capsys):
    bare = [
        {
            "question": tree["question"],
            "question_id": tree["question_id"],
            "nodes": [{"id": n["id"], "completion": n["completion"]} for n in tree["nodes"]],
        }
        for tree in trees
    ]
    bare[0]["nodes"][-1]["reward"] = given = 1 - trees[0]["nodes"][-1]["reward"]
    run = tmp_path / "run"
    assert imported(bare, run, capsys) == ""
    made = list(read_lines(run / "rounds/000/trees/00000.jsonl"))
    assert made[0]["nodes"][-1]["reward"] == given
    for one, other in zip(made[1:], trees[1:], strict=True):
        assert [n["value"] for n in one["nodes"]] == [n["value"] for n in other["nodes"]]
    assert all(n["logprobs"] == [] and n["token_ids"] for tree in made for n in tree["nodes"])
    assert cli.main(["train", *FLAGS, str(run)]) == 0


def test_a_search_that_has_begun_is_neither_mixed_nor_ignored(trees, tmp_path, capsys):
    assert imported(trees, tmp_path / "taken", capsys) == ""
    assert imported(trees, tmp_path / "taken", capsys) == ""  # again: nothing is left to do
    file, own = tmp_path / "trees.jsonl", tmp_path / "own"
    file.write_text("".join(json.dumps(tree) + "\n" for tree in trees))
    words = ["label", *FLAGS, str(tmp_path / "taken"), "--import", str(file)]
    assert cli.main(words) == 2 and "not from what is given here" in capsys.readouterr().err
    shutil.copytree(cli_run.as_trained(), own)
    stages = manifest.load(own)["stages"]
    begun = {**stages["search/000"], "done": False}
    remedy = "to go on with it, or choose another --output-dir"
    for state in (stages, {**stages, "search/000": begun}):
        manifest.amend(own, stages=state)
        for words in (["--import", str(file)], ["--join", "slice-1", "slice-2"]):
            assert cli.main(["label", *FLAGS, str(own), *words]) == 2
            said = capsys.readouterr().err
            assert f"malt: {words[0]}: the search of" in said and remedy in said
    # Opened again, the imported search is not filled up with one of the run's own.
    words = ["search", *FLAGS, str(tmp_path / "taken"), "--redo", "search/000"]
    assert cli.main(words) == 2 and "was joined or imported" in capsys.readouterr().err
    assert len(list((tmp_path / "taken/rounds/000/trees").iterdir())) == 1


def test_trees_of_other_questions_are_refused(trees, tmp_path, capsys):
    assert "no tree of" in imported(trees[1:], tmp_path / "a", capsys)
    twice = imported([*trees, trees[0]], tmp_path / "b", capsys)
    assert f":{len(trees) + 1}:" in twice and "has a tree already" in twice
    other = [{**trees[0], "question": "another"}, *trees[1:]]
    assert "is another one" in imported(other, tmp_path / "c", capsys)
    assert not (tmp_path / "c" / "rounds").exists()
