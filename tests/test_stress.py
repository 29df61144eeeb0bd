"""The whole loop, by the command line, on the smallest and the least lucky inputs there are."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, models

import cli_run
import tiny
from malt_jax import cli
from malt_jax.storage.jsonl import read_lines
from malt_jax.tasks.base import Grade


class Always(tiny.LuckGrader):
    """Every answer is right, or none is, whatever it says."""

    def __init__(self, verdict: bool):
        self.verdict = verdict

    def grade(self, texts, questions):
        return [Grade("0", self.verdict) for _ in texts]


def run(config: dict, folder: Path, *flags: str) -> int:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return cli.main(
        ["run", "--config", str(path), "--quiet", *flags, "--output-dir", str(folder / "run")]
    )


def configured(model: Path) -> dict:
    evaluation = {"trees": 1, "systems": ["sa", "ma", "malt"], "baseline": "sa@3"}
    own = {"model": {"path": str(model)}, "sampler": tiny.ONE_BATCH, "eval": evaluation}
    return {**tiny.SMALL, **own}


def records(folder: Path) -> list[dict]:
    return [r for p in sorted(folder.glob("run/rounds/000/trees/*.jsonl")) for r in read_lines(p)]


@pytest.mark.parametrize("verdict", [True, False])
def test_trees_all_right_or_all_wrong_give_no_pairs_and_the_loop_ends(
    verdict, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(tiny.LuckGrader, "grade", Always(verdict).grade)
    assert run(configured(cli_run.model()), tmp_path) == 0
    counts = json.loads((tmp_path / "run/rounds/000/data/counts.json").read_text())
    for role in ("generator", "verifier", "refiner"):
        data = tmp_path / "run/rounds/000/data" / role
        assert (data / "dpo.jsonl").read_bytes() == b""
        assert bool((data / "sft.jsonl").read_bytes()) == verdict
        assert (tmp_path / "run/export" / role / "model.safetensors").exists()
    same = "all_right" if verdict else "all_wrong"
    assert counts["trees"]["trees"] == counts["trees"][same] == 4
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert {row["accuracy"] for row in results["systems"]} == {float(verdict)}


def test_a_model_that_says_nothing_gives_empty_trees_and_the_loop_ends(tmp_path):
    """Every token is special, so every text is empty and no answer parses."""
    model = tiny.write_model(tmp_path / "model")
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.add_special_tokens([*tiny.CHARACTERS])
    tokenizer.save(str(model / "tokenizer.json"))
    assert run(configured(model), tmp_path) == 0
    for record in records(tmp_path):
        assert {node["completion"] for node in record["nodes"]} == {""}
        assert {node["value"] for node in record["nodes"]} == {0.0}


def test_one_question_one_branch_one_token_and_three_words(tmp_path):
    model = tiny.write_model(tmp_path / "model")
    words = {"<unk>": 0, "a": 1, "</s>": 2}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.add_special_tokens(["<unk>", "</s>"])
    tokenizer.save(str(model / "tokenizer.json"))
    names = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "</s>",
        "unk_token": "<unk>",
    }
    (model / "tokenizer_config.json").write_text(json.dumps(names))
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": [2]}))
    config = json.loads((model / "config.json").read_text())
    config |= {"vocab_size": 3, "bos_token_id": None, "pad_token_id": None}
    (model / "config.json").write_text(json.dumps(config))
    tensors = load_file(model / "model.safetensors")
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"][:3]
    save_file(tensors, model / "model.safetensors")
    least = configured(model)
    least["task"] = {"name": "tiny:LUCK", "num_train": 1, "num_eval": 1}
    least["pipeline"] = {
        "roles": [
            {**role, "branch": 1, "max_new_tokens": 1} for role in tiny.SMALL["pipeline"]["roles"]
        ]
    }
    assert run(least, tmp_path) == 0
    (record,) = records(tmp_path)
    assert len(record["nodes"]) == 3
    assert all(len(node["token_ids"]) == 1 for node in record["nodes"])


def test_weights_whose_logits_overflow_are_named_and_nothing_is_left(tmp_path, capsys):
    """Every weight is finite; their products are not."""
    model = tiny.write_model(tmp_path / "model")
    tensors = load_file(model / "model.safetensors")
    tensors["model.norm.weight"][:] = np.float32(3e38)
    save_file(tensors, model / "model.safetensors")
    assert run(configured(model), tmp_path) == 2
    assert "logits hold NaN or infinity" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_training_that_explodes_stops_with_its_batch_and_the_trees_stay(tmp_path, capsys):
    config = configured(cli_run.model())
    assert run(config, tmp_path, "--train.sft.loop.explode", "1e-9") == 2
    message = capsys.readouterr().err
    assert "training stopped at step 1" in message and "stopped-batch.json" in message
    assert len(records(tmp_path)) == 4
    (named,) = (tmp_path / "run").rglob("stopped-batch.json")
    assert json.loads(named.read_text())["ids"]
