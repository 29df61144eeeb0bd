"""Several processes make the run that one makes, whatever becomes of one of them on the way."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

import cli_run
from malt_jax import cli

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
import hung
import pods

WORDS = list(cli_run.flags()[:-2])


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("pod") / "run"


@pytest.fixture(autouse=True)
def tasks_of_the_tests(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=":")


def test_the_others_end_when_one_is_killed_and_the_same_command_makes_the_same_run(run):
    alone = cli_run.trained()
    for stage in ("eval", "export", "report"):
        assert cli.main([stage, *WORDS, "--output-dir", str(alone)]) == 0
    seconds, statuses = pods.disturb(
        ["run", *WORDS, "--mesh.heartbeat", "20"], run, (2, 2), pods.searching, signal.SIGKILL, 1
    )
    assert seconds < pods.PATIENCE and statuses[1] == -signal.SIGKILL and statuses[0] != 0
    assert "process" in run.with_name("run.0.log").read_text()
    assert not (run / "report.html").exists()
    pods.whole(["run", *WORDS], run, 2, 2)
    assert pods.differences(alone, run) == []
    assert (run / "report.html").exists()
    assert run.with_name("run.1.log").read_text().count("accuracy") == 0  # process 0 alone speaks


def test_a_process_that_hangs_is_named_in_time_and_all_end_to_be_started_again(tmp_path):
    run = hung.measure("sleep", 1, hang=3, folder=tmp_path)
    assert [process.popen.returncode for process in run] == [75, 75]
    assert all(2 < process.named < process.ended < 12 for process in run)
    for process in run:
        said = process.log.read_text()
        assert "process 1 (" in said and "process 0 (" not in said
        assert "in stand_still (hung.py:" in said and "(safe point)" in said


def test_what_one_process_refuses_ends_all_with_its_message(run):
    pod = pods.start(["search", *WORDS, "--search.threshold", "0.25"], run, 2, 2)
    assert pods.wait(pod, pods.PATIENCE) == [2, 2]
    assert "search.threshold was 0.5 and is now 0.25" in pod[0].log.read_text()
