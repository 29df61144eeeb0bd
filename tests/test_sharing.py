"""Roles, trees, role data and results as others get them: uploaded, and loaded as a dataset."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

import cli_run
import hub
from malt_jax import cli
from malt_jax.errors import UserError
from malt_jax.export.dataset import Round, write_dataset
from malt_jax.stages import export
from malt_jax.storage import manifest
from malt_jax.storage.jsonl import read_lines, read_records
from malt_jax.tree.node import Tree
from synthetic_run import HOSTILE, make_run

TRUST = "--trust-task-code"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    cli_run.trained()
    return Path(shutil.copytree(cli_run.as_trained(), tmp_path_factory.mktemp("run") / "run"))


@pytest.mark.parametrize("answer, status", [(403, 2), (500, 75)])
def test_an_upload_may_be_tried_again_only_if_the_hub_is_out_of_order(
    tmp_path, monkeypatch, answer, status
):
    """Launchers start a command that ends with 75 again."""
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between the client's own tries
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "config.json").write_text("{}")
    run = SimpleNamespace(path=tmp_path, export=lambda role: tmp_path / "export")
    session = SimpleNamespace(
        run=run, pipeline=SimpleNamespace(roles=[SimpleNamespace(name="refiner")])
    )
    with hub.serving(tmp_path / "hub") as remote:
        remote.refuses, remote.refusal = "refiner", answer
        with pytest.raises(UserError, match=r"export\.push_to_hub: org/malt-refiner") as found:
            export._push(session, "org/malt")
    assert found.value.status == status


def test_a_refused_upload_is_one_sentence_and_the_same_command_completes_it(run, tmp_path, capsys):
    words = ["export", "--output-dir", str(run), TRUST, "--quiet"]
    with hub.serving(tmp_path) as remote:
        remote.refuses = "refiner"
        assert cli.main([*words, "--export.push-to-hub", "org/malt"]) == 2
        assert "export.push_to_hub: org/malt-refiner" in capsys.readouterr().err
        remote.refuses, remote.commits = "", []
        assert cli.main([*words, "--export.push-to-hub", "org/malt"]) == 0
        roles = ("generator", "verifier", "refiner")
        places = [*(f"models/org/malt-{role}" for role in roles), "datasets/org/malt-data"]
        assert remote.commits == places
        assert remote.private == dict.fromkeys(places, True)
        for place, folder in zip(places, [*(run / "export" / r for r in roles), run / "dataset"],
                                 strict=True):  # fmt: skip
            names = {p.relative_to(folder) for p in folder.rglob("*") if p.is_file()}
            there = tmp_path / place
            assert names == {p.relative_to(there) for p in there.rglob("*") if p.is_file()}
            assert all((folder / n).read_bytes() == (there / n).read_bytes() for n in names)
        assert cli.main([*words, "--export.push-to-hub", "org/malt"]) == 0
        assert remote.commits == places  # nothing is uploaded twice
    manifest.verify(run)
    _compare_with_the_run(run, tmp_path / "datasets" / "org" / "malt-data", tmp_path / "cache")


def test_a_dataset_that_is_asked_for_later_leaves_the_exported_roles_as_they_are(tmp_path):
    own = Path(shutil.copytree(cli_run.as_trained(), tmp_path / "run"))
    words = ["export", "--output-dir", str(own), TRUST, "--quiet"]
    assert cli.main(words) == 0
    times = {p: p.stat().st_mtime_ns for p in (own / "export").rglob("*")}
    assert not (own / "dataset").exists()
    assert cli.main([*words, "--export.dataset", "true"]) == 0
    assert times == {p: p.stat().st_mtime_ns for p in (own / "export").rglob("*")}
    assert (own / "dataset" / "README.md").exists() and not (own / "set-aside").exists()
    assert manifest.stage_done(own, "export")
    manifest.verify(own)


def _compare_with_the_run(run: Path, folder: Path, cache: Path) -> None:
    """The uploaded dataset holds the nodes and signals of the run's files, and its role data."""
    from datasets import load_dataset

    rows = load_dataset(str(folder), "nodes", split="train", cache_dir=str(cache)).to_list()
    trees = [
        t for p in sorted(run.glob("rounds/000/trees/*")) for t in read_records(p, Tree.from_record)
    ]
    nodes = [node for tree in trees for node in tree.nodes]
    assert [row["node_id"] for row in rows] == [node.id for node in nodes]
    signals = {row["node_id"]: row for row in read_lines(run / "rounds/000/credit/signals.jsonl")}
    for row, node in zip(rows, nodes, strict=True):
        assert (row["value"], row["label"], row["reward"]) == (node.value, node.label, node.reward)
        assert tuple(row["token_ids"]) == node.token_ids and row["completion"] == node.completion
        assert row["advantage"] == signals[node.id].get("advantage")
    pairs = load_dataset(str(folder), "refiner_sft", split="train", cache_dir=str(cache)).to_list()
    kept = list(read_lines(run / "rounds/000/data/refiner/sft.jsonl"))
    assert [row["completion"] for row in pairs] == [row["completion"] for row in kept]


def test_any_text_of_a_model_can_be_stored(tmp_path):
    run = make_run(tmp_path / "run", len(HOSTILE))
    trees = list(read_records(run / "rounds/000/trees/00000.jsonl", Tree.from_record))
    first = trees[0].nodes[0]
    thinking = replace(first, thought="<think>hm", unclosed=True)
    trees[0] = replace(trees[0], nodes=(thinking, *trees[0].nodes[1:]))
    forest = Round(0, trees, {first.id: {"divergence": 0.25}})
    data = run / "rounds/000/data/verifier/dpo.jsonl"
    pairs = list(read_lines(data))
    pairs[-1]["margin"] = 0.5  # a column of some rows only
    data.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    results = [run / "results.json"]
    facts = {"run": HOSTILE[5], "task": "gsm8k", "base": "x"}
    write_dataset(tmp_path / "d", [forest], run / "rounds/000/data", results, **facts)
    import pyarrow.parquet as pq

    stored = pq.read_table(tmp_path / "d/data/verifier/dpo.parquet").to_pylist()
    assert [row["margin"] for row in stored] == [*[None] * (len(pairs) - 1), 0.5]
    rows = pq.read_table(tmp_path / "d" / "nodes").to_pylist()
    nodes = [node for tree in trees for node in tree.nodes]
    assert [row["node_id"] for row in rows] == [node.id for node in nodes]
    known = ("thought", "unclosed", "divergence")
    assert [rows[0][name] for name in known] == ["<think>hm", True, 0.25]
    assert [rows[1][name] for name in known] == [None, False, None]
    plain = [(r, n) for r, n in zip(rows, nodes, strict=True) if n.completion.isascii()]
    assert plain and all(row["completion"] == node.completion for row, node in plain)
    assert json.loads((tmp_path / "d" / "results.json").read_text())["questions"] == len(HOSTILE)
