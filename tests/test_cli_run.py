"""The stages one command at a time on a random model, and the trained run answering questions."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

import cli_run
from malt_jax import cli, escape
from malt_jax.errors import UserError
from malt_jax.pipeline import Pipeline
from malt_jax.stages.label import label
from malt_jax.stages.names import trained_stage
from malt_jax.stages.session import Session
from malt_jax.storage import manifest
from malt_jax.storage.signals import signal_received

TRUST = "--trust-task-code"
"""The run's task is the tests' own module, which its config names."""


@pytest.fixture(scope="module")
def configured() -> list[str]:
    """The flags of a run in seconds, its directory last."""
    return [*cli_run.flags()]


@pytest.fixture(scope="module")
def trained() -> Path:
    return cli_run.trained()


def test_stage_by_stage_is_the_loop(trained, configured, capsys):
    assert manifest.stage_done(trained, trained_stage(0))
    assert cli.main(["eval", *configured]) == 0
    out, err = capsys.readouterr()
    assert "MALT" in out and "accuracy" in out and err == ""
    assert json.loads((trained / "results.json").read_text())["questions"] == 5
    assert cli.main(["report", *configured]) == 0
    assert capsys.readouterr().out.splitlines()[0] == str(trained / "report.html")


def test_a_run_is_compared_with_another_one_on_a_page_of_its_own(trained, tmp_path, capsys):
    copied, page = shutil.copytree(trained, tmp_path / "copied"), tmp_path / "page.html"
    words = ("--compare", str(trained), str(copied), "--output", str(page), TRUST)
    assert cli.main(["report", *words]) == 0
    assert capsys.readouterr().out == f"{page}\n"
    text = page.read_text()
    assert "On the 5 questions that both runs answered" in text and "same config" in text
    assert cli.main(["report", *words]) == 0  # an earlier comparison may be replaced


def test_another_config_is_exit_2_and_names_the_field(trained, configured, capsys):
    assert cli.main(["search", *configured, "--search.threshold", "0.25"]) == 2
    assert "search.threshold was 0.5 and is now 0.25" in capsys.readouterr().err


def test_redo_of_a_stage_that_never_was_names_those_there_are(trained, configured, capsys):
    assert cli.main(["label", *configured, "--redo", "labl/000"]) == 2
    assert "label/000" in capsys.readouterr().err


def test_damage_is_exit_2_and_redo_mends_it(trained, configured, capsys, tmp_path):
    copy = shutil.copytree(trained, tmp_path / "run")
    flags = [*configured[:-1], str(copy)]
    damaged = copy / "rounds/000/data/refiner/sft.jsonl"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:-1])
    assert cli.main(["label", *flags]) == 2
    message = capsys.readouterr().err
    assert "refiner/sft.jsonl" in message and "--redo label/000" in message
    assert cli.main(["label", *flags, "--redo", "label/000"]) == 0
    assert damaged.read_bytes() == whole


def test_what_stands_where_an_export_goes_is_kept(trained, configured, tmp_path):
    run = shutil.copytree(cli_run.as_trained(), tmp_path / "run")
    thesis = run / "export/refiner/thesis.tex"
    thesis.parent.mkdir(parents=True)
    thesis.write_text("mine")
    assert cli.main(["export", *configured[:-1], str(run)]) == 0
    assert not thesis.exists() and (run / "export/refiner/model.safetensors").exists()
    assert (run / "set-aside/000/export/refiner/thesis.tex").read_text() == "mine"


def test_told_to_stop_the_state_is_saved_and_the_status_says_so(trained, configured, tmp_path):
    """SIGTERM while blocks of a single question are searched; what was begun is whole."""
    run = tmp_path / "run"
    flags = [*configured[:-1], str(run), "--search.block", "1", "--task.num-train", "40"]

    def stop_after_a_block() -> None:
        while not list(run.glob("rounds/000/trees/*.jsonl")):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop_after_a_block, daemon=True).start()
    assert cli.main(["search", *flags]) == 143
    written = list(run.glob("rounds/000/trees/*.jsonl"))
    assert 1 <= len(written) < 40
    manifest.verify(run)
    assert len(manifest.sealed_units(run, "search/000")) == len(written)


def test_told_to_stop_in_a_block_it_does_not_wait_for_its_end(configured, tmp_path, monkeypatch):
    """The request is heard between two chunks of decoding; the block in progress is owed again."""
    from malt_jax.sampling.device import Device

    run = tmp_path / "run"
    decode, chunks = Device.decode, []

    def counted(self, *arguments):
        chunks.append(1)
        if len(chunks) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        # A chunk of this model takes a millisecond, and Python hears signals in its main thread,
        # which these threads have to let run.
        while len(chunks) >= 2 and not signal_received() and time.monotonic() < latest:
            time.sleep(0.001)
        return decode(self, *arguments)

    latest = time.monotonic() + 60
    monkeypatch.setattr(Device, "decode", counted)
    flags = [*configured[:-1], str(run), "--task.num-train", "40", "--search.block", "40"]
    assert cli.main(["search", *flags]) == 130
    assert len(chunks) <= 4  # each of two streams may have begun another one
    assert not list(run.glob("rounds/**/*.jsonl"))
    manifest.verify(run)


def test_told_to_stop_in_one_stage_it_begins_no_other(trained, configured, tmp_path, monkeypatch):
    def told(*arguments):
        label(*arguments)
        os.kill(os.getpid(), signal.SIGTERM)

    run = shutil.copytree(cli_run.as_trained(), tmp_path / "run")
    monkeypatch.setattr("malt_jax.stages.run.label", told)
    monkeypatch.setattr(Session, "initial_weights", lambda *_: pytest.fail("began to train"))
    assert cli.main(["run", *configured[:-1], str(run), "--redo", "label/000"]) == 143
    assert manifest.stage_done(run, "label/000")


def test_the_pipeline_answers_the_same_every_time(trained):
    pipeline = Pipeline.load(trained, trust_task_code=True)
    heard: list[tuple[int, str, str]] = []
    first = pipeline.ask("e1+1=?", votes=3, on_text=lambda *told: heard.append(told))
    again = pipeline.ask("e1+1=?", votes=3)
    assert first == again
    assert len(first.votes) == 3 and first.prediction == first.votes[first.winner]
    assert first.text == first.turns[-1].text
    for draw, turns in enumerate(first.draws):
        assert [turn.role for turn in turns] == ["generator", "verifier", "refiner"]
        for turn in turns:
            streamed = "".join(t for d, role, t in heard if (d, role) == (draw, turn.role))
            assert streamed == turn.text
    assert pipeline.ask("e1+1=?", votes=1, seed=5) != pipeline.ask("e1+1=?", votes=1, seed=6)


@pytest.mark.parametrize(
    ("question", "votes", "message"),
    [("", 3, "empty"), ("a", 0, "votes"), ("a" * 5000, 1, "tokens")],
)
def test_questions_that_cannot_be_asked_are_named(trained, question, votes, message):
    with pytest.raises(UserError, match=message):
        Pipeline.load(trained, trust_task_code=True).ask(question, votes=votes)


def test_ask_shows_every_turn_and_the_vote(trained, capsys):
    assert cli.main(["ask", "e1+1=?", "--run", str(trained), TRUST]) == 0
    out = capsys.readouterr().out
    for draw in (1, 2, 3):
        for role in ("generator", "verifier", "refiner"):
            assert f"[{draw}/3] {role}" in out
    assert "votes: " in out and "answer: " in out


def test_ask_says_what_the_model_cannot_read(trained, capsys):
    assert cli.main(["ask", "e1+1=?", "--run", str(trained), TRUST, "--votes", "1"]) == 0
    assert capsys.readouterr().err == ""
    assert cli.main(["ask", "wo ist €?", "--run", str(trained), TRUST, "--votes", "1"]) == 0
    out, err = capsys.readouterr()
    assert "no token for €" in err and "trained on luck" in err and "answer: " in out


def test_merged_models_can_be_added_to_an_export_without_them(configured, tmp_path, monkeypatch):
    run = shutil.copytree(cli_run.as_trained(), tmp_path / "run")
    flags = [*configured[:-1], str(run)]
    assert cli.main(["export", *flags, "--export.merged", "false"]) == 0
    folder = run / "export/refiner"
    assert (folder / "adapter").is_dir() and not (folder / "model.safetensors").exists()
    card = (folder / "README.md").read_text()
    assert "Only adapters were exported" in card and "### transformers" not in card
    # A process that read the manifest after another had reopened the export would skip that step.
    order, reopen = [], manifest.reopen
    monkeypatch.setattr("malt_jax.stages.export.wait_for_all", order.append)
    monkeypatch.setattr(manifest, "reopen", lambda *a: order.append("reopened") or reopen(*a))
    assert cli.main(["export", *flags]) == 0  # merged models are the default
    assert order == ["export looked up", "reopened"]
    assert (folder / "model.safetensors").exists() and (folder / "adapter").is_dir()
    [kept] = run.glob("set-aside/*/export/refiner/README.md")
    assert kept.read_text() == card
    manifest.verify(run)


def test_ask_reads_lines_where_no_question_is_given(trained, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("e1+1=?\n\ne2+2=?\n"))
    assert cli.main(["ask", "--run", str(trained), TRUST, "--votes", "1"]) == 0
    assert capsys.readouterr().out.count("answer: ") == 2


def test_what_a_model_writes_cannot_act_on_the_terminal(trained, capsys, monkeypatch):
    monkeypatch.setattr(
        "malt_jax.models.tokenizer.Tokenizer.decode", lambda self, ids, **_: "\x1b[2J" * len([*ids])
    )
    assert cli.main(["ask", "e1+1=?", "--run", str(trained), TRUST, "--votes", "1"]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out and escape.visible("\x1b[2J") in out


def test_a_run_that_is_not_trained_does_not_answer_as_if_it_were(configured, tmp_path, capsys):
    folder = str(tmp_path / "run")
    assert cli.main(["search", *configured[:-1], folder, "--task.num-train", "1"]) == 0
    assert cli.main(["ask", "e1+1=?", "--run", folder, TRUST]) == 2
    assert "not trained yet" in capsys.readouterr().err


def test_the_base_alone_is_measured_before_there_is_any_training(configured, tmp_path, capsys):
    folder = str(tmp_path / "run")
    words = [*configured[:-1], folder]
    assert cli.main(["eval", *words]) == 2, "MALT itself was never trained"
    assert "run `malt train`" in capsys.readouterr().err
    base = ["--eval.systems", "sa", "--task.num-eval", "2", "--eval.baseline", "sa@9"]
    assert cli.main(["eval", *words, *base]) == 0
    assert "single agent" in capsys.readouterr().out
