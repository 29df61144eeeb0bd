"""The supervisor restarts a run until it is done, and stops where no restart would help."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SUPERVISE = [sys.executable, str(ROOT / "scripts/launch/supervise.py")]
WORKER = """
import os, sys, time
from pathlib import Path
run, index = Path(sys.argv[sys.argv.index("--output-dir") + 1]), os.environ.get("MALT_PROCESS", "0")
run.mkdir(exist_ok=True)
tries = run.parent / f"tries-{index}"
tries.write_text(str(count := int(tries.read_text() if tries.exists() else 0) + 1))
(run / "metrics.jsonl").open("a").write("x")
"""


def supervise(tmp_path: Path, code: str, *flags: str) -> subprocess.CompletedProcess:
    """Supervises a worker that first notes how often it was started, as `count`."""
    (tmp_path / "worker.py").write_text(WORKER + code)
    worker = [sys.executable, str(tmp_path / "worker.py"), "--output-dir", str(tmp_path / "run")]
    words = [*SUPERVISE, *flags, "--", *worker]
    return subprocess.run(words, capture_output=True, text=True, timeout=100)


def tries(tmp_path: Path, process: int = 0) -> int:
    return int((tmp_path / f"tries-{process}").read_text())


def test_a_run_whose_processes_die_is_started_again_until_it_is_done(tmp_path):
    code = """
(run / f"done-{index}-{count}").touch()
if count < 3 and index == "1":
    os.kill(os.getpid(), 9)
"""
    done = supervise(tmp_path, code, "--processes", "2")
    assert done.returncode == 0, done.stderr
    assert tries(tmp_path, 0) == tries(tmp_path, 1) == 3
    assert "process 1 ended with -9; restart 1" in done.stderr


def test_restarts_without_progress_are_limited_and_wrong_input_is_not_repeated(tmp_path):
    done = supervise(tmp_path, "sys.exit(1)", "--stalled", "2")
    assert done.returncode == 1 and tries(tmp_path) == 2
    assert "finished nothing new" in done.stderr
    done = supervise(tmp_path, "sys.exit(2)")
    assert done.returncode == 2 and tries(tmp_path) == 3


def test_a_process_that_stays_when_another_has_ended_is_killed_after_the_grace(tmp_path):
    code = """
if count == 1 and index == "0":
    (run / "begun").touch()
    time.sleep(90)
while not (run / "begun").exists():
    time.sleep(0.01)
sys.exit(count == 1)
"""
    began = time.monotonic()
    done = supervise(tmp_path, code, "--processes", "2", "--grace", "0.5")
    assert done.returncode == 0 and tries(tmp_path, 0) == tries(tmp_path, 1) == 2, done.stderr
    assert time.monotonic() - began < 60


def test_a_store_that_does_not_answer_is_waited_for_and_not_for_ever(tmp_path):
    code = "sys.exit(75 if count < 3 else 0)"
    done = supervise(tmp_path, code, "--stalled", "1")
    assert done.returncode == 0 and tries(tmp_path) == 3
    # After the first of these attempts a pause of 1 s, after the second one of 2 s.
    done = supervise(tmp_path, "sys.exit(75)", "--stalled", "1", "--away", "1.5")
    assert done.returncode == 75 and tries(tmp_path) == 6
    assert "something outside has not answered" in done.stderr


@pytest.mark.parametrize(
    "flag",
    [
        "--processes=0",
        "--processes=x",
        "--stalled=0",
        "--hang=-1",
        "--hang=nan",
        "--away=-1",
        "--grace=-1",
    ],
)
def test_a_number_that_means_nothing_is_refused(flag, tmp_path):
    done = supervise(tmp_path, "", flag)
    assert done.returncode == 2 and "allowed: " in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_run_that_hangs_is_started_again(tmp_path):
    code = "(run / str(count)).touch()\nif count == 1: time.sleep(60)"
    done = supervise(tmp_path, code, "--hang", "1")
    assert done.returncode == 0 and tries(tmp_path) == 2
    assert "nothing was written for 1 s" in done.stderr


def test_a_supervisor_that_is_told_to_stop_lets_the_run_save_its_state(tmp_path):
    code = """
import signal
signal.signal(signal.SIGTERM, lambda *_: ((run / "saved").touch(), sys.exit(143)))
(run / "ready").touch()
time.sleep(60)
"""
    (tmp_path / "worker.py").write_text(WORKER + code)
    worker = [sys.executable, str(tmp_path / "worker.py"), "--output-dir", str(tmp_path / "run")]
    process = subprocess.Popen([*SUPERVISE, "--", *worker])
    while not (tmp_path / "run/ready").exists():
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143
    assert (tmp_path / "run/saved").exists() and tries(tmp_path) == 1


def test_a_command_without_a_run_directory_is_refused():
    done = subprocess.run([*SUPERVISE, "--", "malt", "run"], capture_output=True, text=True)
    assert done.returncode == 1 and "--output-dir" in done.stderr
