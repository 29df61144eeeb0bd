"""Whatever a result was made from: when any of it has changed, the run is not gone on with.

One test an ingredient, by the command line; each refusal names what changed and changes nothing.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file

import cli_run
import tiny
from malt_jax import cli


@pytest.fixture
def trained(tmp_path) -> Path:
    """A copy of a run that is searched, labelled and trained, and owes its evaluation."""
    return shutil.copytree(cli_run.as_trained(), tmp_path / "run")


def refused(capsys, run: Path, *flags: str, command: str = "eval") -> str:
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file() and p.name != ".lock"}
    capsys.readouterr()
    assert cli.main([command, *cli_run.flags()[:-1], str(run), *flags]) == 2
    after = {p: p.read_bytes() for p in run.rglob("*") if p.is_file() and p.name != ".lock"}
    assert after == before
    return capsys.readouterr().err


@pytest.fixture
def base() -> Path:
    """The base model's folder, put back as it was afterwards."""
    folder = cli_run.model()
    kept = {path: path.read_bytes() for path in folder.iterdir()}
    yield folder
    for path, content in kept.items():
        path.write_bytes(content)


def test_weights(trained, base, capsys):
    tensors = load_file(base / "model.safetensors")
    tensors["model.norm.weight"][0] += np.float32(1e-6)
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    assert "model.path: the weights" in refused(capsys, trained)


def test_chat_template_and_tokenizer(trained, base, capsys):
    path = base / "tokenizer_config.json"
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": template}))
    assert "model.path:" in refused(capsys, trained)


def test_adapter(trained, capsys):
    folders = [trained / "checkpoints/000" / role / "sft" for role in ("verifier", "refiner")]
    shutil.rmtree(folders[0])
    shutil.copytree(folders[1], folders[0])
    message = refused(capsys, trained)
    assert "checkpoints/000/verifier/sft" in message and "--redo train/000/verifier/sft" in message


def test_reference_log_probabilities(trained, capsys):
    (path,) = (trained / "checkpoints/000/verifier").rglob("references.npz")
    path.write_bytes((trained / "checkpoints/000/refiner/dpo/references.npz").read_bytes())
    assert "verifier/dpo/references.npz" in refused(capsys, trained)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("pipeline.roles.1.template", "W {question} {generator} "),
        ("pipeline.roles.2.temperature", "0.9"),
        ("pipeline.roles.2.top_p", "0.5"),
        ("pipeline.roles.2.top_k", "7"),
        ("pipeline.roles.2.max_new_tokens", "7"),
        ("pipeline.roles.2.stop", "x"),
        ("pipeline.roles.0.branch", "2"),
        ("search.backup", "max"),
        ("search.threshold", "0.4"),
        ("data.pairs", "all"),
        ("train.lora.rank", "8"),
        ("train.dpo.beta", "0.1"),
        ("train.sft.optim.learning_rate", "0.01"),
        ("sampler.cache", "int8"),
        ("task.num_train", "3"),
        ("seed", "1"),
        ("sharing", "shared"),
    ],
)
def test_config(trained, capsys, field, value):
    message = refused(capsys, trained, f"--{field}", value)
    assert "made with another config" in message and field in message


@pytest.mark.parametrize("split", ["train", "eval"])
def test_data_of_code(trained, capsys, monkeypatch, split):
    """Questions that lie in no file: the same names, one other word."""

    def load(asked, path=None, limit=None, seed=None):
        questions = tiny._load(asked, path, limit, seed)
        if asked != split:
            return questions
        return [dataclasses.replace(questions[0], text="e9+9=?"), *questions[1:]]

    monkeypatch.setattr(tiny, "LUCK", dataclasses.replace(tiny.LUCK, load=load))
    assert f"task.name: the {split} questions" in refused(capsys, trained)


def test_data_of_a_file(tmp_path, capsys):
    config = yaml.safe_load(Path(cli_run.flags()[1]).read_text())
    config["task"] = {"name": "custom", "grader": "number", "num_train": 1}
    for split, start in (("train", 1), ("eval", 5)):
        path = tmp_path / f"{split}.jsonl"
        rows = [{"question": f"e{i}=?", "answer": str(i)} for i in range(start, start + 3)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        config["task"][f"{split}_path"] = str(path)
    for role in config["pipeline"]["roles"]:
        role["template"] = "{question} "
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    flags = ["--config", str(tmp_path / "config.yaml"), "--quiet", "--output-dir"]
    run = tmp_path / "run"
    for stage in ("search", "label", "train"):
        assert cli.main([stage, *flags, str(run)]) == 0
    path = tmp_path / "train.jsonl"
    path.write_text(path.read_text().replace("e3=?", "e4=?"))  # a question this run does not use
    assert cli.main(["eval", *flags, str(run)]) == 2
    assert str(path) in capsys.readouterr().err
