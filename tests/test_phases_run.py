"""A run whose roles learn by KTO and by policy gradient, killed and resumed by the command line."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
import yaml

import tiny
from malt_jax import cli
from malt_jax.config.lora import LoraConfig
from malt_jax.config.pipeline import RoleConfig
from malt_jax.models.model import load_model
from malt_jax.stages import train
from malt_jax.storage.checkpoints import CheckpointFolder
from malt_jax.storage.jsonl import read_lines
from malt_jax.training import loop
from malt_jax.training.references import weights_hash
from malt_jax.training.saver import FINAL, load_weights
from malt_jax.training.weights import initial_weights

sys.path.insert(0, str(Path(__file__).parent))  # for `--task.name tiny:LUCK`

TRAIN = {"generator": "pg", "verifier": "sft+kto", "refiner": "sft+pg"}
PHASES = ("generator/pg", "verifier/sft", "verifier/kto", "refiner/sft", "refiner/pg")


class Killed(BaseException):
    pass


def killing_after(saves: int, original=loop._save):
    """A save that kills the process's training once so many were made."""
    made = []

    def save(*arguments):
        original(*arguments)
        made.append(1)
        if len(made) == saves:
            raise Killed

    return save


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("phases")
    phase = {"epochs": 1, "batch_size": 8, "loop": {"save_every": 1}}
    data = {
        **tiny.SMALL,
        "model": {"path": str(tiny.write_model(folder / "model"))},
        "sampler": tiny.ONE_BATCH,
        "train": {"lora": {"rank": 4}, "sft": {"epochs": 1}, "kto": phase, "pg": phase},
        "eval": {"trees": 0, "systems": ["sa", "malt"], "baseline": "sa@3"},
    }
    roles = data["pipeline"]["roles"]
    data["pipeline"] = {"roles": [{**role, "train": TRAIN[role["name"]]} for role in roles]}
    (folder / "config.yaml").write_text(yaml.safe_dump(data))
    return folder / "config.yaml"


def malt(command: str, config: Path, run: Path, *flags: str) -> int:
    line = ["--config", str(config), "--quiet", "--output-dir", str(run), *flags]
    return cli.main([command, *line])


@pytest.fixture(scope="module")
def runs(config) -> tuple[Path, Path]:
    """A run that was trained at one go, and one that was killed again and again."""
    whole, cut = config.parent / "whole", config.parent / "cut"
    for command in ("search", "label"):
        assert malt(command, config, whole) == 0
    shutil.copytree(whole, cut)
    assert malt("train", config, whole) == 0
    kills = 0
    for attempt in range(20):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "_save", killing_after(1 + 3 * attempt))
            try:
                assert malt("train", config, cut) == 0
                break
            except Killed:
                kills += 1
    assert kills >= 2
    return whole, cut


def test_a_run_that_is_killed_in_these_phases_ends_with_the_same_weights(config, runs):
    model = load_model(config.parent / "model")
    like = initial_weights(model, LoraConfig(rank=4), name="a")
    for place in PHASES:
        whole, cut = (
            load_weights(CheckpointFolder(run / "checkpoints/000" / place), FINAL, like)
            for run in runs
        )
        assert weights_hash(whole) == weights_hash(cut), place


def test_the_policy_gradient_of_a_run_begins_at_a_ratio_of_1(runs):
    """With the log-probabilities that the sampler stored, computed by another program."""
    lines = [line for line in read_lines(runs[0] / "metrics.jsonl") if line["stage"] == "trained"]
    measured = {f"{line['role']}/{line['phase']}": line for line in lines}
    assert set(measured) >= set(PHASES)
    assert measured["generator/pg"]["start_ratio_gap"] < 1e-3
    # After SFT the policy is another one than that of the search.
    assert measured["refiner/pg"]["start_ratio_gap"] > 1e-3
    assert all(line["kl_from_start"] > 0 for line in lines)


def test_every_round_of_a_policy_gradient_begins_at_a_ratio_of_1(config, tmp_path):
    """A later round is sampled by the weights that the round before it has trained."""
    data = yaml.safe_load(config.read_text())
    generator, _, refiner = data["pipeline"]["roles"]
    own = {"train": "pg", "template": "R {question} "}
    data["pipeline"]["roles"] = [{**role, **own} for role in (generator, refiner)]
    data["train"]["pg"] = {"epochs": 1, "optim": {"learning_rate": 0.02}}
    data["rounds"] = 2
    two_rounds, run = tmp_path / "config.yaml", tmp_path / "run"
    two_rounds.write_text(yaml.safe_dump(data))
    for command in ("search", "label", "train") * 2:
        assert malt(command, two_rounds, run) == 0
    lines = [line for line in read_lines(run / "metrics.jsonl") if line["stage"] == "trained"]
    measured = {(line["round"], line["role"]): line for line in lines if line["phase"] == "pg"}
    assert [*measured] == [(r, role) for r in (0, 1) for role in ("generator", "refiner")]
    for line in measured.values():
        assert line["start_ratio_gap"] < 1e-3
        # Far enough that the log-probabilities of other weights would not pass.
        assert line["kl_from_start"] > 1e-3


def test_sampler_and_trainer_are_compared_before_every_phase(runs):
    lines = list(read_lines(runs[0] / "metrics.jsonl"))
    at = {name: [i for i, line in enumerate(lines) if line["stage"] == name
                 and line["role"] != "star"] for name in ("mismatch", "train")}  # fmt: skip
    compared = [f"{lines[i]['role']}/{lines[i]['phase']}" for i in at["mismatch"]]
    assert sorted(compared) == sorted(PHASES)
    for i in at["mismatch"]:
        line, later = lines[i], lines[i + 1 :]
        assert 0 <= line["mean"] <= line["largest"] < 1e-3 and line["completions"] > 0
        same = [x for x in lines if x["stage"] == "train" and x["role"] == line["role"]
                and x["phase"] == line["phase"]]  # fmt: skip
        assert same and all(x in later for x in same)


def test_a_search_in_another_precision_is_refused_in_a_sentence(config, tmp_path, capsys):
    for command in ("search", "label"):
        assert malt(command, config, tmp_path / "run", "--sampler.weights", "int8") == 0
    capsys.readouterr()
    assert malt("train", config, tmp_path / "run", "--sampler.weights", "int8") == 2
    message = capsys.readouterr().err
    assert "away from 1, allowed: 0.001" in message and "sampler.weights" in message


def test_a_phase_can_be_made_again(config, runs, tmp_path):
    run = shutil.copytree(runs[0], tmp_path / "run")
    assert malt("train", config, run, "--redo", "train/000/refiner/pg") == 0
    model = load_model(config.parent / "model")
    like = initial_weights(model, LoraConfig(rank=4), name="a")
    first, again = (
        load_weights(CheckpointFolder(place / "checkpoints/000/refiner/pg"), FINAL, like)
        for place in (runs[0], run)
    )
    assert weights_hash(first) == weights_hash(again)


def test_the_run_can_be_evaluated_exported_and_planned(config, runs, capsys):
    whole, _ = runs
    for command in ("eval", "export"):
        assert malt(command, config, whole) == 0
    card = (whole / "export/verifier/README.md").read_text()
    assert "000/verifier/kto" in (card + (whole / "results.json").read_text())
    assert malt("plan", config, whole) == 0
    assert "kto step" in capsys.readouterr().out


def test_a_policy_gradient_on_sharpened_samples_is_warned_of():
    assert train._sampling_warning(RoleConfig(temperature=1.0)) is None
    assert "temperature 0.3" in train._sampling_warning(RoleConfig())
    assert "top_k 5" in train._sampling_warning(RoleConfig(temperature=1.0, top_k=5))
