"""Slices of one search, joined, equal the search of one run; anything else is refused."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import cli_run
from malt_jax import cli
from malt_jax.errors import UserError
from malt_jax.stages import join as join_stage
from malt_jax.stages.join import in_order
from malt_jax.stages.session import Session
from malt_jax.stages.slices import Slice, check_files, check_trees, lacking
from malt_jax.storage import manifest
from malt_jax.storage.jsonl import read_lines
from malt_jax.storage.rundir import RunDir

FLAGS = cli_run.flags()[:-1]


@pytest.fixture(scope="module")
def slices(tmp_path_factory) -> list[str]:
    """Two run directories with half of the search of `cli_run.trained()` each, and mirrors."""
    folder = tmp_path_factory.mktemp("slices")
    for index in (1, 2):
        words = ["search", *FLAGS, str(folder / str(index)), "--search.shard", f"{index}/2"]
        assert cli.main([*words, "--mirror", str(folder / f"mirror-{index}")]) == 0
    return [str(folder / "1"), str(folder / "2")]


def join(run: Path, slices: list[str], *flags: str) -> int:
    return cli.main(["label", *FLAGS, str(run), *flags, "--join", *slices])


def content(run: Path, pattern: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted(run.glob(pattern))]


def test_joined_slices_equal_the_search_of_one_run(slices, tmp_path):
    alone = cli_run.trained()
    run = tmp_path / "run"
    assert join(run, slices[::-1]) == 0
    assert content(run, "rounds/000/trees/*") == content(alone, "rounds/000/trees/*")
    assert content(run, "rounds/000/data/*/*.jsonl") == content(alone, "rounds/000/data/*/*.jsonl")
    manifest.verify(run)
    assert manifest.load(run)["model"] == manifest.load(alone)["model"]
    assert join(run, slices) == 0  # again: nothing is left to do


def test_slices_are_joined_from_their_mirrors(slices, tmp_path):
    mirrors = [f"file://{Path(one).with_name(f'mirror-{Path(one).name}')}" for one in slices]
    assert join(tmp_path / "run", [slices[0], mirrors[1]]) == 0
    assert join(tmp_path / "again", mirrors) == 0
    trees = content(cli_run.trained(), "rounds/000/trees/*")
    for run in (tmp_path / "run", tmp_path / "again"):
        assert content(run, "rounds/000/trees/*") == trees
        assert not list(run.glob(".tmp-*"))


def test_slices_may_differ_in_fields_that_no_tree_depends_on(slices, tmp_path):
    role = ("--pipeline.roles.0.training.sft.loop.steps", "3", "--pipeline.roles.2.train", "sft")
    flags = ("--train.lora.rank", "2", "--data.pairs", "all", "--task.num-eval", "4", *role)
    assert join(tmp_path / "run", slices, *flags) == 0


def test_a_missing_slice_is_named_and_no_run_is_created(slices, tmp_path, capsys):
    assert join(tmp_path / "run", slices[:1]) == 2
    assert "missing: slice 2/2" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_slice_given_twice_is_named(slices, tmp_path, capsys):
    copy = shutil.copytree(slices[0], tmp_path / "copy")
    assert join(tmp_path / "run", [*slices, str(copy)]) == 2
    message = capsys.readouterr().err
    assert "more than once" in message and slices[0] in message and str(copy) in message


def test_a_slice_that_was_never_mirrored_is_named(slices, tmp_path, capsys):
    empty = f"file://{tmp_path}/empty"
    assert join(tmp_path / "run", [slices[0], empty]) == 2
    assert f"{empty}: no run is mirrored" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--seed", "1"), "seed was 0 and is now 1"),
        (("--search.block", "7"), "search.block was 2 and is now 7"),
        (("--search.shard", "1/2"), "search.shard"),
    ],
)
def test_a_slice_of_another_search_is_refused_by_field(slices, tmp_path, capsys, flags, named):
    assert join(tmp_path / "run", slices, *flags) == 2
    assert named in capsys.readouterr().err


def test_an_unfinished_slice_is_named(slices, tmp_path, capsys):
    copy = shutil.copytree(slices[1], tmp_path / "copy")
    manifest.reopen(copy, "search/000")
    assert join(tmp_path / "run", [slices[0], str(copy)]) == 2
    message = capsys.readouterr().err
    assert str(copy) in message and "slice 2/2" in message and "not finished" in message


def test_a_damaged_slice_is_refused(slices, tmp_path, capsys):
    copy = shutil.copytree(slices[1], tmp_path / "copy")
    shard = next(copy.glob("rounds/000/trees/*.jsonl"))
    shard.write_bytes(shard.read_bytes().replace(b"a", b"b", 1))
    assert join(tmp_path / "run", [slices[0], str(copy)]) == 2
    assert shard.name in capsys.readouterr().err


def test_trees_of_other_questions_are_refused_by_name(slices, tmp_path, capsys):
    """A slice with as many questions, but other ones, and a manifest that fits them."""
    copy = shutil.copytree(slices[1], tmp_path / "copy")
    shard = next(copy.glob("rounds/000/trees/*.jsonl"))
    shard.write_bytes(shard.read_bytes().replace(b'"question_id":"train3"', b'"question_id":"t3"'))
    manifest.seal(copy, "search/000", [shard])
    assert join(tmp_path / "run", [slices[0], str(copy)]) == 2
    assert "expected the tree of train3, found that of t3" in capsys.readouterr().err


def resealed(slices: list[str], copy: Path, change: Callable[[Path, list[dict]], object]) -> str:
    """A copy of the second slice that was changed, and whose manifest was made to fit."""
    shutil.copytree(slices[1], copy)
    shard = sorted(copy.glob("rounds/000/trees/*.jsonl"))[0]
    records = list(read_lines(shard))
    before = manifest.sealed_units(copy, "search/000")
    change(copy, records)
    shard.write_bytes(b"".join(json.dumps(record).encode() + b"\n" for record in records))
    units = {path: None for path in [*before, *copy.glob("rounds/**/*.jsonl")] if path.exists()}
    manifest.reopen(copy, "search/000")
    manifest.seal(copy, "search/000", units)
    return str(copy)


def set_in_cost(name: str, value: object) -> Callable[[Path, list[dict]], None]:
    def change(copy: Path, _: list[dict]) -> None:
        path = copy / "cost/search-000.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))

    return change


MALFORMED = {
    "no question id": lambda _, trees: trees[0].pop("question_id"),
    "a question id that is no text": lambda _, trees: trees[0].update(question_id=[]),
    "another answer": lambda _, trees: trees[0].update(answer="-1"),
    "another question": lambda _, trees: trees[0].update(question="?"),
    "no nodes": lambda _, trees: trees[0].update(nodes=[]),
    "nodes that are no list": lambda _, trees: trees[0].update(nodes=5),
    "a node that is no object": lambda _, trees: trees[0]["nodes"].__setitem__(0, None),
    "a node too few": lambda _, trees: trees[0]["nodes"].pop(),
    "a node twice": lambda _, trees: trees[0]["nodes"].append(trees[0]["nodes"][-1]),
    "two nodes of one id": lambda _, trees: trees[0]["nodes"][-1].update(
        id=trees[0]["nodes"][-2]["id"]
    ),
    "another shape": lambda _, trees: trees[0].update(branches=[1, 1]),
    "branches that are no numbers": lambda _, trees: trees[0].update(branches=["2", "2"]),
    "ragged trees of a fixed search": lambda _, trees: trees[0].update(ragged=True),
    "other roles": lambda _, trees: trees[0].update(roles=["a", "b"]),
    "an unknown parent": lambda _, trees: trees[0]["nodes"][-1].update(parent="x"),
    "no token ids": lambda _, trees: trees[0]["nodes"][0].pop("token_ids"),
    "a token id that is a text": lambda _, trees: trees[0]["nodes"][0].update(token_ids=["7"]),
    "a negative token id": lambda _, trees: trees[0]["nodes"][0]["prompt_ids"].append(-1),
    "a huge token id": lambda _, trees: trees[0]["nodes"][0]["prompt_ids"].append(10**30),
    "a log-probability too few": lambda _, trees: trees[0]["nodes"][0]["logprobs"].pop(),
    "no reward": lambda _, trees: trees[0]["nodes"][-1].pop("reward"),
    "a reward that is a text": lambda _, trees: trees[0]["nodes"][-1].update(reward="1"),
    "a reward beyond 1": lambda _, trees: trees[0]["nodes"][-1].update(reward=2),
    "a value that is a text": lambda _, trees: trees[0]["nodes"][0].update(value="1"),
    "no trees": lambda _, trees: trees.clear(),
    "a tree twice": lambda _, trees: trees.insert(0, trees[0]),
    "no count": set_in_cost("completions", None),
    "a count that is a text": set_in_cost("completions", "5"),
    "a negative count": set_in_cost("tokens_generated", -1),
    "a count that is a list": set_in_cost("peak_bytes", []),
    "a huge count": set_in_cost("row_steps", 10**400),
    "a cost that is no object": lambda copy, _: (copy / "cost/search-000.json").write_text("[]"),
    "a cost that is not JSON": lambda copy, _: (copy / "cost/search-000.json").write_text("{"),
    "no cost": lambda copy, _: (copy / "cost/search-000.json").unlink(),
    "a shard of another name": lambda copy, _: (copy / "rounds/000/trees/x.jsonl").write_text(""),
    "a shard of the first slice's name": lambda copy, _: (
        copy / "rounds/000/trees/1of2-00000.jsonl"
    ).write_text(""),
    "a folder as a shard": lambda copy, _: (copy / "rounds/000/trees/2of2-00001.jsonl").mkdir(),
}


@pytest.fixture(scope="module")
def session() -> Session:
    """The questions and roles of the run that the slices belong to, without a run directory."""
    from malt_jax import config
    from malt_jax.progress import Progress

    return Session(
        config.from_dict(RunDir.existing(cli_run.trained()).config), None, Progress(True)
    )


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_slice_with_a_valid_seal_is_refused_by_name(slices, session, tmp_path, name):
    copy = resealed(slices, tmp_path / "copy", MALFORMED[name])
    both = [Slice(p, RunDir.existing(p), at, 2) for at, p in enumerate([slices[0], copy], start=1)]
    with pytest.raises(UserError) as refusal:
        for one in both:
            check_files(one)
        check_trees(session, both)
    message = str(refusal.value)
    assert message.startswith(f"--join: {copy} cannot be used: ") and "\n" not in message


@pytest.mark.parametrize("name", ["no question id", "a count that is a text", "no cost"])
def test_a_malformed_slice_makes_the_command_exit_with_one_sentence(slices, tmp_path, capsys, name):
    copy = resealed(slices, tmp_path / "copy", MALFORMED[name])
    assert join(tmp_path / "run", [slices[0], copy]) == 2
    message = capsys.readouterr().err
    assert f"--join: {copy} cannot be used: " in message and message.count("\n") == 1


@pytest.mark.timeout(60)
def test_a_malformed_mirrored_slice_is_named_by_its_url(slices, tmp_path, capsys):
    copy = resealed(slices, tmp_path / "copy", MALFORMED["no question id"])
    url = f"file://{copy}"
    assert join(tmp_path / "run", [slices[0], url]) == 2
    assert f"--join: {url} cannot be used: " in capsys.readouterr().err


def with_config(slices: list[str], copy: Path, text: str) -> str:
    """A copy of the second slice with another config.yaml, and a manifest that fits it."""
    shutil.copytree(slices[1], copy)
    (copy / "config.yaml").write_text(text)
    manifest.amend(copy, config_sha256=hashlib.sha256(text.encode()).hexdigest())
    return str(copy)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "text", ["5", "[]", "{", "5: 6", "search: 5", "search: {shard: x}", "nonsense: 1", "seed: -1"]
)
def test_a_slice_with_a_malformed_config_is_refused_by_name(slices, tmp_path, capsys, text):
    copy = with_config(slices, tmp_path / "copy", text)
    assert join(tmp_path / "run", [slices[0], copy]) == 2
    message = capsys.readouterr().err
    assert f"--join: {copy} cannot be used: " in message and message.count("\n") == 1, message


@pytest.mark.timeout(60)
def test_a_slice_of_any_number_of_slices_is_refused_quickly(slices, tmp_path, capsys):
    config = (Path(slices[1]) / "config.yaml").read_text()
    copies = [
        with_config(slices, tmp_path / f"{at}", config.replace("2/2", f"{at}/{10**15}"))
        for at in (1, 2)
    ]
    assert join(tmp_path / "run", copies) == 2
    message = capsys.readouterr().err
    assert f"missing: slice 3/{10**15}" in message and len(message) < 1000


def test_slices_of_two_divisions_are_refused():
    slices = [
        Slice(f"runs/{i}of{k}", RunDir(Path("runs"), None), i, k) for i, k in ((1, 2), (3, 4))
    ]
    with pytest.raises(UserError, match="slice of 4"):
        in_order(slices)


def test_a_wait_without_slices_to_wait_for_is_refused_before_anything_is_written(tmp_path, capsys):
    assert cli.main(["label", *FLAGS, str(tmp_path / "run"), "--wait", "5"]) == 2
    assert "--wait: belongs to --join" in capsys.readouterr().err
    words = ["label", *FLAGS, str(tmp_path / "run"), "--join", "a", "b", "--wait", "nan"]
    assert cli.main(words) == 2 and "--wait: found nan, allowed: 0" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_joining_waits_for_slices_that_are_not_finished_and_names_them(
    slices, tmp_path, capsys, monkeypatch
):
    late, mirror = tmp_path / "late", f"file://{tmp_path / 'mirror'}"
    # 1. What is not finished in time is named, whether it is a folder or a mirror.
    places = [slices[0], str(late), mirror]
    assert join(tmp_path / "run", places, "--wait", "0.001") == 2
    said = capsys.readouterr().err
    assert f"{late} (not begun), {mirror} (not begun)" in said and slices[0] not in said
    # 2. A slice that is finished meanwhile is taken.
    monkeypatch.setattr(join_stage, "LOOK_SECONDS", 0.0)
    looks = []

    def look(place: str) -> str:
        looks.append(place)
        if len(looks) == 3:
            shutil.copytree(slices[1], late)
        return lacking(place)

    monkeypatch.setattr(join_stage, "lacking", look)
    assert join(tmp_path / "run", [slices[0], str(late)], "--wait", "5") == 0
    assert looks.count(slices[0]) == 1
