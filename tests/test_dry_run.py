"""`--dry-run` of each command: its own stages, and a refusal wherever the command would refuse."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import tiny
from malt_jax import cli, config
from malt_jax.config.reading import to_dict
from malt_jax.storage import manifest
from malt_jax.storage.rundir import RunDir
from test_cli import fails

TRAINED = ("search/000", "label/000", "train/000/generator/dpo", "train/000/star/sft")
ONLY = {
    "search": ("39 completions per question", "first prompt of the refiner"),
    "label": ("label: value",),
    "train": ("train: LoRA",),
    "eval": ("5 questions to evaluate on", "systems against", "first prompt of the refiner"),
    "export": ("export: a merged model",),
    "report": ("report.html",),
}
"""What the dry run of each stage says, and the others do not."""


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return tiny.write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def flags(model, tmp_path) -> list[str]:
    return flags_of(model, tmp_path / "run")


def flags_of(model: Path, run: Path) -> list[str]:
    flags = ["--model.path", str(model), "--task.num-train", "7", "--task.num-eval", "5"]
    for role in range(3):
        flags += [f"--pipeline.roles.{role}.max-new-tokens", "20"]
    return [*flags, "--output-dir", str(run), "--dry-run"]


def begin(flags: list[str], *done: str) -> None:
    """A run with these flags, in which stages are finished that sealed nothing."""
    made = config.load(None, [word for word in flags if word != "--dry-run"])
    RunDir.open(made.output_dir, to_dict(made), "test").close()
    for stage in done:
        manifest.seal(made.output_dir, stage, [])


@pytest.mark.parametrize("stage", ONLY)
def test_a_stage_describes_itself_alone(stage, flags, capsys):
    before = {"search": 0, "label": 1, "train": 2}.get(stage, len(TRAINED))
    begin(flags, *TRAINED[:before])
    assert cli.main([stage, *flags]) == 0
    said = capsys.readouterr().out
    others = {text for other in ONLY.values() for text in other} - {*ONLY[stage]}
    assert all(text in said for text in ONLY[stage])
    assert not [text for text in others if text in said]


def test_what_is_finished_says_that_nothing_is_left(flags, capsys):
    begin(flags, *TRAINED, "eval", "export", "report")
    for stage in ("run", *ONLY):
        assert cli.main([stage, *flags]) == 0
        said = capsys.readouterr().out
        assert "nothing is left to do" in said and "prompt of" not in said
        # Sealed without weights, so nothing was trained.
        assert "train/000/generator/dpo (nothing to train)" in said
        assert "train/000/star/sft (nothing to train)" in said and "search/000," in said
    assert cli.main(["label", *flags, "--redo", "label/000"]) == 0
    assert "label: value" in capsys.readouterr().out


def test_a_preview_is_described_as_one(flags, tmp_path, capsys):
    assert "not a run directory" in fails(capsys, "label", *flags, "--preview")
    begin(flags)
    assert "search/000 is not finished" in fails(capsys, "label", *flags, "--preview")
    assert "cannot join" in fails(capsys, "label", *flags, "--preview", "--join", str(tmp_path))
    manifest.seal(tmp_path / "run", "search/000", [])
    assert cli.main(["label", *flags, "--preview"]) == 0
    assert "--preview would print what every credit rule selects" in capsys.readouterr().out


def test_what_the_command_would_refuse_is_refused(flags, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    for command, *words, message in (
        ("run", "--mirror", str(tmp_path / "run/mirror"), "share files"),
        ("run", "--mirror", "nothing://there", "mirror: nothing://there"),
        ("run", "--mesh.processes", "4", "mesh.coordinator: missing"),
        ("run", "--output-dir", str(tmp_path / "file/run"), "file is a file"),
        ("export", "train/000/star/sft is not finished"),
        ("train", "label/000 is not finished"),
        ("label", "search/000 is not finished"),
    ):
        assert message in fails(capsys, command, *flags, *words)
    assert not (tmp_path / "run").exists()
    begin(flags, "search/000")
    wrong = ("train", *flags, "--redo", "search/000")
    assert "`malt train` does not make search/000" in fails(capsys, *wrong)


def test_an_evaluation_is_described_before_a_run_is_begun_and_then_needs_its_weights(
    flags, tmp_path, capsys
):
    assert cli.main(["eval", *flags]) == 0
    assert "until then `malt eval` is refused" in capsys.readouterr().out
    begin(flags, "search/000")
    assert "train/000/star/sft is not finished" in fails(capsys, "eval", *flags)
    shutil.rmtree(tmp_path / "run")
    base = ["--eval.systems", "sa,ma", "--eval.trees", "0"]
    begin([*flags, *base], "search/000")
    assert cli.main(["eval", *flags, *base]) == 0  # the base alone needs no training


def test_slices_that_are_waited_for_are_no_reason_to_refuse(flags, model, tmp_path, capsys):
    late = tmp_path / "late"
    begin([*flags_of(model, late), "--search.shard", "1/2"])
    for place in (late, tmp_path / "not yet"):
        said = fails(capsys, "label", *flags, "--join", str(place))
        assert "has not finished its search" in said or "not a run directory" in said
        assert cli.main(["label", *flags, "--join", str(place), "--wait", "10"]) == 0
        out = capsys.readouterr().out
        assert f"trees of {place} (" in out and "waited for, at most 10 minutes" in out
    assert "no such file" in fails(capsys, "label", *flags, "--import", str(tmp_path / "no"))
