"""Several seeds as one table. The second seed's run is a copy of the first with another number."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path

import pytest

import cli_run
from malt_jax import cli
from malt_jax.config.run import with_defaults
from malt_jax.stages import pool
from malt_jax.storage import manifest

BASE = {"model": {"path": "quickstart"}, "task": {"name": "arithmetic"}}
TRUST = "--trust-task-code"
"""The task of these runs is the tests' own code."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[Path]:
    cli_run.trained()
    assert cli.main(["eval", *cli_run.flags()]) == 0
    first = Path(cli_run.flags()[-1])
    return [first, changed(first, tmp_path_factory.mktemp("seeds") / "1", "seed: 0", "seed: 1")]


def changed(run: Path, copy: Path, old: str, new: str) -> Path:
    """A copy of a run whose config says something else, sealed again as if it were made so."""
    shutil.copytree(run, copy)
    text = (copy / "config.yaml").read_text()
    assert text.count(old) == 1
    (copy / "config.yaml").write_text(text.replace(old, new))
    digest = hashlib.sha256((copy / "config.yaml").read_bytes()).hexdigest()
    manifest.amend(copy, config_sha256=digest)
    return copy


def test_two_equal_seeds_pool_to_what_each_says_alone(runs, tmp_path, capsys):
    assert cli.main(["pool", *map(str, reversed(runs)), TRUST, "--output", str(tmp_path)]) == 0
    assert "MALT" in capsys.readouterr().out
    pooled = json.loads((tmp_path / "results.json").read_text())
    alone = json.loads((runs[0] / "results.json").read_text())
    assert pooled["seeds"] == [0, 1] and alone["seeds"] == [0]
    assert pooled["questions"] == alone["questions"]
    for row, own in zip(pooled["systems"], alone["systems"], strict=True):
        assert row["name"] == own["name"] and row["accuracy"] == pytest.approx(own["accuracy"])
        assert set(row["seeds"]) == {"0", "1"}
        for other, test in row["tests"].items():
            assert test["p"] == pytest.approx(own["tests"][other]["p"])
            assert test["wrong_to_right"] == 2 * own["tests"][other]["wrong_to_right"]
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".md", ".tex", ".csv"}
    digest = hashlib.sha256((runs[0] / "eval/malt.jsonl").read_bytes()).hexdigest()
    assert alone["records"]["eval/malt.jsonl"] == digest
    assert pooled["records"]["seed 1, eval/malt.jsonl"] == digest


def test_a_model_that_lay_elsewhere_is_the_same_model(runs, tmp_path):
    config = (runs[1] / "config.yaml").read_text()
    path = re.search(r"^model:\n(?:  .*\n)*?  path: (.*)$", config, re.M)[0]
    moved = changed(runs[1], tmp_path / "moved", path, path + "-elsewhere")
    words = ["pool", str(runs[0]), str(moved), TRUST, "--output", str(tmp_path / "pooled")]
    assert cli.main(words) == 0


def test_a_label_of_an_ablation_is_only_what_tables_show():
    one, other = (
        with_defaults(
            {**BASE, "ablations": [{"name": "a", "label": label, "set": {"search.backup": backup}}]}
        )
        for label, backup in (("old", "max"), ("new", "max"))
    )
    assert one != other and pool._unlabelled(one) == pool._unlabelled(other)
    wider = {**BASE, "ablations": [{"name": "a", "set": {"search.backup": "soft"}}]}
    assert pool._unlabelled(with_defaults(wider)) != pool._unlabelled(one)


def test_what_cannot_be_pooled_is_named(runs, tmp_path, capsys):
    other = changed(runs[1], tmp_path / "other", "threshold: 0.5", "threshold: 0.25")
    damaged = changed(runs[1], tmp_path / "damaged", "seed: 1", "seed: 2")
    with open(damaged / "eval/malt.jsonl", "ab") as file:
        file.write(b"{}\n")
    asked = changed(runs[1], tmp_path / "asked", "seed: 1", "seed: 3")
    manifest.amend(asked, questions={"train": "x", "eval": "others"})
    for folders, words in (
        ([runs[0]], "one run alone"),
        ([runs[0], asked], "evaluated on other questions"),
        ([runs[0], runs[0]], "seed of its own"),
        ([runs[0], other], "search.threshold was 0.5 and is now 0.25"),
        ([runs[0], damaged], "eval/malt.jsonl"),
        ([runs[0], tmp_path], "not a run directory"),
    ):
        assert cli.main(["pool", *map(str, folders), TRUST]) == 2
        assert words in capsys.readouterr().err


def test_the_table_replaces_nothing_but_an_earlier_one(runs, tmp_path, capsys):
    command = ["pool", *map(str, runs), TRUST, "--output"]
    sealed = {path: path.read_bytes() for path in runs[0].rglob("*") if path.is_file()}
    for folder in (runs[0], runs[0] / "cost", runs[0] / "new"):
        assert cli.main([*command, str(folder)]) == 2
        assert "in a run directory" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in runs[0].rglob("*") if path.is_file()} == sealed
    for name, content in (("results.csv", "mine"), ("results.json", "[]")):
        (tmp_path / name).write_text(content)
        assert cli.main([*command, str(tmp_path)]) == 2
        assert "has not written" in capsys.readouterr().err
        assert (tmp_path / name).read_text() == content
        (tmp_path / name).unlink()
    for _ in range(2):
        assert cli.main([*command, str(tmp_path)]) == 0
    assert cli.main([*command, "x" * 300]) == 2
    assert cli.main(["pool", str(runs[0]), "x" * 300, TRUST]) == 2


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("eval/malt.jsonl", '"correct":false', '"correct":true'),
        ("eval/sa.jsonl", '"turns":', '"turn":'),
        ("results.json", '"systems"', '"system"'),
        ("results.json", "{", "xx"),
        ("rounds/000/trees/00000.jsonl", '"nodes":', '"node":'),
    ],
)
@pytest.mark.parametrize("redo", [(), ("--redo", "report")])
def test_no_report_is_made_from_what_was_edited(runs, tmp_path, capsys, name, old, new, redo):
    flags = cli_run.flags()[:-1]
    assert cli.main(["report", *flags, str(runs[0])]) == 0
    shutil.copytree(runs[0], tmp_path / "run")
    text = (tmp_path / "run" / name).read_text()
    assert old in text
    (tmp_path / "run" / name).write_text(text.replace(old, new, 1))
    page = (tmp_path / "run/report.html").read_bytes()
    capsys.readouterr()
    assert cli.main(["report", *flags, str(tmp_path / "run"), *redo]) == 2
    told = capsys.readouterr()
    assert name in told.err and told.err.count("\n") == 1 and not told.out
    assert (tmp_path / "run/report.html").read_bytes() == page
