"""Both benchmarks run, and report what their pages name."""

from __future__ import annotations

import json
import os
import subprocess
import sys

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


def test_a_worker_ends_with_its_parent(tmp_path):
    code = (
        "import os, threading\n"
        "from malt_jax.bench import worker\n"
        "threading.Timer(0.5, os._exit, (9,)).start()\n"
        "worker.measured_apart('waits', {})\n"
    )
    # In place of a benchmark: the worker imports `malt_jax.bench.waits`, which blocks.
    (tmp_path / "sitecustomize.py").write_text(
        "import sys, time, types\n"
        "module = types.ModuleType('malt_jax.bench.waits')\n"
        "module.measure = lambda job: time.sleep(600)\n"
        "sys.modules['malt_jax.bench.waits'] = module\n"
    )
    env = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    # The worker inherits standard error, which so stays open as long as it lives.
    done = subprocess.run([sys.executable, "-c", code], env=env, stderr=subprocess.PIPE, timeout=60)
    assert done.returncode == 9


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
