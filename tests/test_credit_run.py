"""Credit on a run directory: signals beside the trees, the table, the preview, the report."""

import json
import re
import shutil
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest

import malt_jax as malt
from cli_run import as_trained, flags
from credit_trees import forest_of
from malt_jax import cli
from malt_jax.credit.contrast import advice, contrast
from malt_jax.credit.rules import RULES
from malt_jax.credit.signals import node_signals
from malt_jax.credit.verdict import read_verdict
from malt_jax.evaluation.credit_table import contrast_table
from malt_jax.storage.jsonl import read_lines, read_records
from malt_jax.tree.node import Forest, Tree


@pytest.fixture
def run(tmp_path):
    return shutil.copytree(as_trained(), tmp_path / "run")


def forest_in(run):
    files = sorted((run / "rounds/000/trees").glob("*.jsonl"))
    return Forest([tree for file in files for tree in read_records(file, Tree.from_record)])


def files_of(run):
    return {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}


def test_every_node_has_its_signals_beside_the_sealed_trees(run):
    rows = {row["node_id"]: row for row in read_lines(run / "rounds/000/credit/signals.jsonl")}
    forest = forest_in(run)
    assert set(rows) == {node.id for tree in forest.trees for node in tree.nodes}
    for tree in forest.trees:
        for siblings in tree.children.values():
            for node in siblings:
                # Equal texts are one turn, whose value is the mean of theirs.
                pooled = {
                    s.id: fmean(o.value for o in siblings if o.token_ids == s.token_ids)
                    for s in siblings
                }
                own = pooled.pop(node.id)
                expected = own - fmean(pooled.values())
                assert rows[node.id]["advantage"] == pytest.approx(expected, abs=1e-5)
                assert rows[node.id]["value"] == node.value


def test_the_counts_hold_what_the_trees_can_teach(run):
    counts = json.loads((run / "rounds/000/data/counts.json").read_text())
    found = contrast(forest_in(run).trees)
    assert list(counts["credit"]) == ["generator", "verifier", "refiner"]
    for role, one in found.items():
        same = [name for name in one if name not in ("verdict", "verdicts")]
        assert {n: counts["credit"][role][n] for n in same} == {n: one[n] for n in same}


def test_the_page_s_sample_of_the_table_has_the_columns_that_are_printed():
    """But for those that cost scoring passes, which the run of the page did not ask for."""
    rewards = np.random.default_rng(0).integers(0, 2, (3, 3, 3, 3)).astype(np.float32)
    said = {"g0": "#1", "v0": "wrong"}
    forest = forest_of(rewards, ("generator", "verifier", "refiner"), said=said)
    signals = node_signals(forest, readers={"verifier": read_verdict})
    credit = contrast(forest.trees, signals)
    headings, *_ = contrast_table(credit, dict.fromkeys(credit, 1)).plain()
    page = (Path(__file__).parents[1] / "docs" / "credit.md").read_text()
    [sample] = re.findall("^role +prefixes.*$", page, re.MULTILINE)
    assert sample.split() == headings.split()


def test_a_preview_shows_every_rule_and_writes_nothing(run, capsys):
    before = files_of(run)
    assert cli.main(["label", "--preview", *flags()[:2], "--output-dir", str(run)]) == 0
    assert files_of(run) == before
    text = capsys.readouterr().out
    forest = forest_in(run)
    table = [line.split() for line in text.splitlines() if line.split()[:1]]
    for number, rule in enumerate(RULES):
        (first,) = [i for i, words in enumerate(table) if words[:2] == [rule, "generator"]]
        data = malt.label(forest, rule=rule)
        for row, (role, learned) in zip(table[first : first + 3], data.items(), strict=True):
            cells = row[row.index(role) + 1 :]
            # The last cells are KTO's two counts and the policy gradient's.
            kto = [sum(e.label is kind for e in learned.kto) for kind in (True, False)]
            assert cells[-3:] == list(map(str, [*kto, len(learned.pg)])), (number, rule, role)
            assert str(len(learned.sft)) in cells and str(len(learned.dpo)) in cells
    assert all(line in text for line in advice(contrast(forest.trees)))


def test_a_preview_needs_trees_and_joins_nothing(run, tmp_path, capsys):
    config = flags()[:2]
    assert cli.main(["label", "--preview", *config, "--output-dir", str(tmp_path / "none")]) == 2
    assert "not a run directory" in capsys.readouterr().err
    joined = ["label", "--preview", *config, "--output-dir", str(run), "--join", str(run)]
    assert cli.main(joined) == 2
    assert "--preview: writes nothing, so it cannot join" in capsys.readouterr().err


def test_the_report_shows_signals_and_what_the_trees_can_teach(run, monkeypatch):
    from malt_jax.report import page
    from malt_jax.report.build import build_report

    monkeypatch.setattr(page.figures, "value_histogram", lambda *_: None)
    text = build_report(run).read_text()
    for sentence in advice(contrast(forest_in(run).trees)):
        assert sentence.split(": ")[0] in text and sentence.split(". ")[-1][:40] in text
    assert "wrong -&gt; right" in text and '"credit":{"confidence":' in text.replace(" ", "")


def test_the_explorer_has_the_value_that_equal_siblings_have_together():
    from malt_jax.report.prompts import Templates
    from malt_jax.report.trees import Uses, compact

    rewards = np.array([[[1, 1], [0, 0], [1, 0]]], np.float32)
    said = {"g0": "same", "g1": "same"}  # one draft, followed twice: values of 1 and 0
    (tree,) = forest_of(rewards, ("generator", "refiner"), said=said).trees
    nodes = {node["id"]: node for node in compact(tree, Uses(), Templates())["nodes"]}
    assert [nodes[f"Q0/g{i}"].get("pooled") for i in range(3)] == [0.5, 0.5, None]
    assert [nodes[f"Q0/g{i}"]["value"] for i in range(3)] == [1.0, 0.0, 0.5]
