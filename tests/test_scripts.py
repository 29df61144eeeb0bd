"""The scripts that take hours say what they would do, over any model and questions."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import cli_run

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(("form", "searched"), [((), "1,000"), (("--cpu", "--seeds", "0 1"), "60")])
def test_the_real_model_script_in_both_forms(form, searched, tmp_path):
    for split, count in (("train", 1000), ("eval", 660)):
        rows = ({"question": f"{split} {i}?", "answer": f"#### {i}"} for i in range(count))
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["sh", "scripts/qwen25_gsm8k.sh", *form, "--dry-run", "--model.path", cli_run.model()]
    for split in ("train", "eval"):
        words += [f"--task.{split}-path", tmp_path / f"{split}.jsonl"]
    # `malt` is found beside this Python, as in an activated environment.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        list(map(str, words)), cwd=ROOT, env={**os.environ, "PATH": path}, capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"{searched} questions to search") == max(1, len(form) - 1)
    assert "DPO" in done.stdout and "sa: generator:base" in done.stdout


FAKE_PYTHON = """#!/bin/sh
echo "$@" >> "$LOG"
case "$*" in
  -c*) echo $VERSION; [ $VERSION != 3.9 ] ;;
  "-m venv"*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && [ ! "$NO_VENV" ] ;;
  "-m pip"*) printf '#!/bin/sh\\necho ran "$@"\\n' > .venv/bin/malt && chmod +x .venv/bin/malt ;;
esac
"""
"""Says it is $VERSION; its pip installs a `malt` that says what it was given."""


@pytest.fixture
def quickstart(tmp_path):
    """Runs a copy of the script with a Python that notes what it is asked for."""
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    (tmp_path / "malt_jax").mkdir()
    for name in ("pyproject.toml", "malt_jax/cli.py"):
        (tmp_path / name).touch()
    fake, log = tmp_path / "python", tmp_path / "log"
    fake.write_text(FAKE_PYTHON)
    fake.chmod(0o755)

    def run(version="3.12", **variables):
        log.write_text("")
        env = {**os.environ, "PYTHON": str(fake), "LOG": str(log), "VERSION": version, **variables}
        words = ["sh", tmp_path / "scripts/quickstart.sh", "--seed", "1"]
        done = subprocess.run(words, env=env, capture_output=True, text=True)
        return done, [line for line in log.read_text().splitlines() if line.startswith("-m")]

    return run


def test_the_quickstart_installs_once_and_again_when_the_checkout_changed(quickstart, tmp_path):
    done, asked = quickstart()
    assert done.stdout == "ran run --config configs/quickstart.yaml --seed 1\n", done.stderr
    assert "installing into .venv" in done.stderr and len(asked) == 2
    done, asked = quickstart()
    assert (done.returncode, done.stderr, asked) == (0, "", [])
    for name in ("pyproject.toml", "malt_jax/cli.py"):
        later = (tmp_path / ".venv/installed").stat().st_mtime + 5
        os.utime(tmp_path / name, (later, later))
        _, [pip] = quickstart()
        assert pip.startswith("-m pip install")
        os.utime(tmp_path / name, (0, 0))


def test_the_quickstart_refuses_a_python_that_is_too_old(quickstart, tmp_path):
    done, asked = quickstart("3.9")
    assert done.returncode == 2 and "found Python 3.9" in done.stderr and not asked
    assert "PYTHON=python3.12 sh" in done.stderr and not (tmp_path / ".venv").exists()
    assert quickstart()[0].returncode == 0
    done, asked = quickstart("3.9")  # as if the environment had been made with it
    assert done.returncode == 2 and "remove .venv" in done.stderr and not asked


def test_the_quickstart_leaves_no_half_environment(quickstart, tmp_path):
    done, _ = quickstart(NO_VENV="1")
    assert done.returncode == 1 and not (tmp_path / ".venv").exists()
    assert quickstart()[0].returncode == 0
