"""The whole loop on a mixture of experts, and a second run that continues from its adapters."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path

import pytest
import yaml

import tiny
from malt_jax import cli
from tiny_models import save_with_characters

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # for `--task.name tiny:LUCK`
pytest.importorskip("torch", reason="the checkpoint is made by transformers with torch")


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("mixture")
    save_with_characters("qwen3-moe", folder / "model", num_hidden_layers=1)
    data = {**tiny.SMALL, "model": {"path": str(folder / "model")}, "sampler": tiny.ONE_BATCH}
    targets = ["q", "v", "expert_gate", "expert_up", "expert_down"]
    data["train"] = {**data["train"], "lora": {"rank": 4, "targets": targets}}
    data["eval"] = {"trees": 0, "systems": ["sa", "malt"], "baseline": "sa@3"}
    (folder / "config.yaml").write_text(yaml.safe_dump(data))
    return folder / "config.yaml"


def launch(command: str, config: Path, out: Path, *flags: str) -> int:
    return cli.main([command, "--config", str(config), "--quiet", "--output-dir", str(out), *flags])


def trees(run: Path) -> str:
    return "".join(path.read_text() for path in sorted((run / "rounds/000/trees").glob("*.jsonl")))


def test_a_family_with_fused_projections_is_searched_trained_and_exported(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(HERE.parent / "scripts"))
    import_module("family_loops").run("phi3", tmp_path, num_hidden_layers=1)


@pytest.mark.timeout(900)
def test_a_mixture_is_searched_trained_exported_and_continued(config, capsys):
    from peft import PeftConfig
    from transformers import AutoModelForCausalLM

    first, second = config.parent / "first", config.parent / "second"
    assert launch("run", config, first) == 0
    exported = first / "export" / "refiner"
    assert (first / "checkpoints/000/refiner/dpo").is_dir()
    assert AutoModelForCausalLM.from_pretrained(exported).config.num_experts == 8
    assert PeftConfig.from_pretrained(exported / "adapter").target_modules >= {"gate_proj"}

    # Continued: the first search is already drawn with the adapters, and training goes on.
    flags = [
        word
        for i, role in enumerate(("generator", "verifier", "refiner"))
        for word in (f"--pipeline.roles.{i}.adapter", str(first / "export" / role))
    ]
    for stage in ("search", "label", "train"):
        assert launch(stage, config, second, *flags) == 0
    assert (second / "checkpoints/000/generator/sft").is_dir()
    assert trees(second) != trees(first)
    model = json.loads((second / "manifest.json").read_text())
    assert set(model["model"]["adapters"]) == {"generator", "verifier", "refiner"}

    # An adapter with no room in the run, and one that changed since, are refused in a sentence.
    capsys.readouterr()
    assert launch("run", config, config.parent / "third", *flags, "--train.lora.rank", "2") == 2
    assert "pipeline.roles.0.adapter" in (said := capsys.readouterr().err) and "rank" in said
    assert not (config.parent / "third").exists()
