"""Slices of one search, joined, equal the search of one run; anything else is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import cli_run
from malt_jax import cli
from malt_jax.errors import UserError
from malt_jax.stages.join import Slice, in_order
from malt_jax.storage import manifest
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
    assert join(tmp_path / "run", slices, "--train.lora.rank", "2", "--data.pairs", "all") == 0


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


def test_slices_of_two_divisions_are_refused():
    slices = [
        Slice(f"runs/{i}of{k}", RunDir(Path("runs"), None), i, k) for i, k in ((1, 2), (3, 4))
    ]
    with pytest.raises(UserError, match="slice of 4"):
        in_order(slices)
