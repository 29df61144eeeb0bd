"""The whole loop on a random model: what it leaves on disk, that it resumes, and its variants."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

import tiny
from malt_jax import config as config_module
from malt_jax.config import reading
from malt_jax.errors import UserError
from malt_jax.models.model import load_model
from malt_jax.progress import Progress
from malt_jax.stages.run import run as run_all
from malt_jax.stages.session import Session
from malt_jax.storage.jsonl import read_lines
from malt_jax.storage.rundir import RunDir

sys.path.insert(0, str(Path(__file__).parent))  # for `--task.name tiny:LUCK`


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return tiny.write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def loaded(model_folder):
    return load_model(model_folder)


def configured(model_folder: Path, folder: Path, *flags: str) -> config_module.Config:
    data = {**tiny.SMALL, "model": {"path": str(model_folder)}, "output_dir": str(folder)}
    return config_module.from_dict(data, ["--quiet", *flags])


def run(config: config_module.Config, model=None) -> dict:
    free = config_module.CANNOT_CHANGE_RESULTS
    with RunDir.open(config.output_dir, reading.to_dict(config), "test", free=free) as folder:
        session = Session(config, folder, Progress(quiet=True))
        if model is not None:
            session.bases._models[config.model] = model  # read once for all tests of the module
        try:
            return run_all(session)
        finally:
            session.close()


@pytest.fixture(scope="module")
def finished(model_folder, loaded, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    ablations = [
        {"name": "max", "set": {"search.backup": "max"}},
        {"name": "ipo", "set": {"train.dpo.loss": "ipo"}, "label": "another loss"},
    ]
    config = configured(model_folder, folder, "--ablations", json.dumps(ablations))
    return config, run(config, loaded), folder


def test_every_artefact_of_the_contract_is_there(finished):
    _, _, folder = finished
    for name in (
        "config.yaml", "manifest.json", "results.json", "results.md", "report.html",
        "metrics.jsonl", "rounds/000/trees", "rounds/000/data/verifier/dpo.jsonl",
        "checkpoints/000/refiner", "eval/malt.jsonl", "export/refiner/model.safetensors",
        "export/refiner/adapter/adapter_config.json", "export/refiner/README.md",
    ):  # fmt: skip
        assert (folder / name).exists(), name


def test_a_tree_record_holds_39_nodes_whose_ids_give_back_their_text(finished, loaded):
    _, _, folder = finished
    records = [r for f in sorted((folder / "rounds/000/trees").iterdir()) for r in read_lines(f)]
    assert len(records) == 4
    tokenizer = loaded.tokenizer
    for record in records:
        assert [n["role"] for n in record["nodes"]] == (
            ["generator"] * 3 + ["verifier"] * 9 + ["refiner"] * 27
        )
        for node in record["nodes"]:
            ids = node["token_ids"]
            assert len(ids) == len(node["logprobs"])
            ended = node["finish"] == "eos"
            assert ended == (ids[-1] in tokenizer.end_ids)
            assert tokenizer.decode(ids[:-1] if ended else ids) == node["completion"]


def test_held_out_trees_say_whom_a_role_reads_and_how_far_it_has_moved(finished):
    _, _, folder = finished
    before, after = (
        list(read_lines(folder / f"eval/trees/{when}-signals.jsonl"))
        for when in ("before", "after")
    )
    for rows in (before, after):
        reads = {row["role"]: "influence" in row for row in rows}
        assert reads == {"generator": False, "verifier": True, "refiner": True}
    assert not any("divergence" in row for row in before)
    assert all(abs(row["divergence"]) < 1 for row in after)
    assert any(row["divergence"] for row in after)


def test_trl_and_datasets_read_the_data_as_it_is(finished, loaded):
    datasets = pytest.importorskip("datasets")
    _, _, folder = finished
    path = str(folder / "rounds/000/data/refiner/dpo.jsonl")
    rows = datasets.load_dataset("json", data_files=path, split="train")
    assert {"prompt", "chosen", "rejected"} <= set(rows.column_names) and len(rows) > 0
    for row in rows:
        assert row["chosen_value"] > 0.5 >= row["rejected_value"]
        assert row["chosen_ids"][-1] in loaded.tokenizer.end_ids
        assert loaded.tokenizer.decode(row["chosen_ids"][:-1]) == row["chosen"]


def times(folder: Path) -> dict[Path, int]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {path: path.stat().st_mtime_ns for path in files}


def test_a_finished_run_does_nothing_twice(finished, monkeypatch):
    config, results, folder = finished
    before = times(folder)
    monkeypatch.setattr("malt_jax.models.model.load_model", None)  # not even the model is read
    assert run(config) == results
    assert times(folder) == before


def test_another_config_is_refused_by_the_fields_that_differ(finished, model_folder):
    _, _, folder = finished
    with pytest.raises(UserError, match=r"seed was 0 and is now 1"):
        run(configured(model_folder, folder, "--seed", "1"))


def test_an_ablation_is_a_row_of_the_table_and_searches_nothing(finished):
    _, results, folder = finished
    names = [row["name"] for row in results["systems"]]
    assert "malt-max" in names and "malt-max@3" in names
    ours = (folder / "rounds/000/trees").iterdir()
    for path in ours:
        copy = folder / "ablations/max/rounds/000/trees" / path.name
        assert copy.read_bytes() == path.read_bytes()


def test_an_ablation_of_dpo_learns_nothing_else_again(finished):
    _, results, folder = finished
    assert "MALT, another loss" in [row["label"] for row in results["systems"]]
    variant = folder / "ablations/ipo"
    lines = [json.loads(line) for line in (variant / "metrics.jsonl").read_text().splitlines()]
    assert {line["phase"] for line in lines} == {"dpo"}
    ours = [path for path in (folder / "checkpoints").rglob("*") if path.is_file()]
    sft = [path for path in ours if "sft" in path.parts]
    assert sft
    for path in sft:
        assert (variant / path.relative_to(folder)).read_bytes() == path.read_bytes()


def test_the_first_preference_step_logs_ln_2(finished):
    _, _, folder = finished
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if line["stage"] == "train"]
    first = [
        m
        for m in lines
        if m.get("phase") == "dpo"
        and m["step"]
        == min(n["step"] for n in lines if (n["role"], n["phase"]) == (m["role"], "dpo"))
    ]
    assert first
    for line in first:
        assert line["loss"] == pytest.approx(0.6931472, abs=1e-5)


@pytest.mark.parametrize(
    "flags",
    [
        ("--sharing", "shared", "--rounds", "2"),
        ("--train.full", "--train.sft.optim.learning-rate", "1e-4"),
        ("--pipeline.roles", '[{"name": "generator", "branch": 2, "max_new_tokens": 8}]'),
    ],
    ids=["shared weights, two rounds", "all weights", "one role"],
)
def test_variants_of_the_method_are_a_config_change(flags, model_folder, loaded, tmp_path):
    fewer = ("--eval.systems", "sa,malt", "--sampler.rows", "8")
    config = configured(model_folder, tmp_path / "run", *flags, *fewer)
    results = run(config, loaded)
    assert {row["system"] for row in results["systems"]} == {"sa", "malt"}
    assert (tmp_path / "run/rounds" / f"{config.rounds - 1:03d}").is_dir()
