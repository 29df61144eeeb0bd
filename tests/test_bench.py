"""Both benchmarks run, and report what their pages name."""

from __future__ import annotations

import json

import pytest

import cli_run
from malt_jax import cli
from malt_jax.bench import worker


@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_the_training_benchmark_measures_a_training(stage, capsys):
    words = ["--stage", stage, "--steps", "2", "--no-peer", "--train.dpo.batch-size", "2"]
    model = ["--model.path", str(cli_run.model()), "--train.sft.batch-size", "2"]
    assert cli.main(["bench", "train", *words, *model]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["bench"] == "train"
    assert result["peer"] == result["tunix"] == "not run: asked not to"
    assert result["tokens_per_s"] > 0 and 0 <= result["padding_waste"] < 1
    assert 0 < result["model_flops_utilisation"] < 1
    assert (result["reference_s"] > 0) == (stage == "dpo")


def test_a_peer_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(worker.importlib.util, "find_spec", lambda name: name == "qwix" or None)
    found = worker.beside_tunix("train_tunix", {"no_peer": False}, 1.0)
    assert found == {"tunix": "not run: tunix"}


def test_the_sampler_benchmark_measures_a_search(capsys, tmp_path):
    words = ["--questions", "1", "--branch", "2", "--max-new-tokens", "4", "--no-peer"]
    model = ["--model.path", str(cli_run.model()), "--sampler.rows", "4"]
    file = tmp_path / "svamp.jsonl"  # an answer of this task is a bare number
    file.write_text(json.dumps({"question": "2 + 3?", "answer": "5"}) + "\n")
    task = ["--task.name", "svamp", "--task.train-path", str(file)]
    assert cli.main(["bench", "sampler", *words, *model, *task]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["bench"] == "sampler" and result["tokens_per_s"] > 0
    roofline = result["roofline"]
    assert roofline["step_flops"] > 0 and roofline["matmul_fraction"] > 0
    assert roofline["step_seconds"] > 0 and roofline["memory_fraction"] > 0
