"""Faults of the environment end a command with one sentence before anything is written."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import cli_run
from malt_jax import cli, environment
from malt_jax.environment import check_disk, check_memory
from malt_jax.errors import UserError

RUN = ("run", "--config", "quickstart", "--quiet", "--output-dir")


def malt(*words: str, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "malt_jax.cli", *words],
        capture_output=True,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu", **env},
    )


WRONG = [
    ({"JAX_PLATFORMS": "cuda"}, "JAX_PLATFORMS: found 'cuda'"),
    ({"JAX_PLATFORMS": "cdua"}, "JAX_PLATFORMS: found 'cdua'"),
    ({"JAX_PLATFORMS": "tpu"}, "JAX_PLATFORMS: found 'tpu'"),
    ({"JAX_ENABLE_X64": "maybe"}, "JAX_ENABLE_X64"),
    ({"JAX_NUM_CPU_DEVICES": "two"}, "JAX_NUM_CPU_DEVICES"),
    ({"PYTHONWARNINGS": "error"}, "PYTHONWARNINGS"),
    ({"PYTHONWARNINGS": "ignore,error::DeprecationWarning"}, "error::DeprecationWarning"),
    ({"XLA_FLAGS": "--xla_no_such_flag=1"}, "XLA_FLAGS: found '--xla_no_such_flag=1'"),
]


@pytest.mark.parametrize(("env", "words"), WRONG, ids=str)
def test_a_wrong_variable_is_one_sentence_and_nothing_is_written(env, words, tmp_path):
    done = malt(*RUN, str(tmp_path / "run"), **env)
    assert (done.returncode, done.stdout) == (2, "")
    said = done.stderr.splitlines()
    if env.get("JAX_PLATFORMS") == "tpu" and find_spec("libtpu"):
        said = said[-1:]  # before it the library writes lines of its own
    assert len(said) == 1 and said[0].startswith("malt: ") and words in said[0]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("env", [WRONG[0][0], WRONG[3][0], WRONG[5][0], WRONG[7][0]], ids=str)
def test_version_names_the_versions_and_why_no_device_was_found(env):
    done = malt("--version", **env)
    assert (done.returncode, done.stderr) == (0, "")
    assert "malt-jax 0." in done.stdout and "jax 0." in done.stdout
    (device,) = (line for line in done.stdout.splitlines() if line.startswith("device "))
    assert next(iter(env)) in device


def test_settings_of_jax_that_would_change_results_are_overruled_and_said(tmp_path):
    wanted = {"JAX_ENABLE_X64": "1", "JAX_DEFAULT_PRNG_IMPL": "rbg", "JAX_DISABLE_JIT": "1"}
    code = (
        "import jax\nfrom malt_jax.environment import check_environment\ncheck_environment()\n"
        "print(jax.numpy.zeros(1).dtype, jax.random.key(0).dtype, jax.config.jax_disable_jit)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **wanted}
    )
    assert done.stdout.split() == ["float32", "key<fry>", "False"]
    said = done.stderr.splitlines()
    assert len(said) == 3 and all(f"{name}=" in done.stderr for name in wanted)


def test_x64_changes_no_result(tmp_path):
    """The trees, which depend on every dtype of sampling, with and without the variable."""
    flags = (*cli_run.flags()[:-1],)
    more = ("--task.num-train", "1", "--task.num-eval", "1")
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    shards = []
    for name, value in (("a", "0"), ("b", "1")):
        out = tmp_path / name
        done = malt("search", *flags, str(out), *more, JAX_ENABLE_X64=value, PYTHONPATH=path)
        assert done.returncode == 0, done.stderr
        shards.append([file.read_bytes() for file in sorted(out.glob("rounds/000/trees/*"))])
    assert shards[0] == shards[1] and shards[0]


def test_too_little_memory_is_refused_before_anything_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(environment, "free_memory", lambda: 1_000_000)
    assert cli.main([*RUN, str(tmp_path / "run")]) == 2
    assert "memory: the run needs about" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match="malt plan"):
        check_memory(2_000_000)
    check_memory(1_000_000)


def test_too_little_disk_is_refused_before_anything_is_written(tmp_path, monkeypatch, capsys):
    usage = environment.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(environment.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    assert cli.main([*RUN, str(tmp_path / "run")]) == 2
    assert "output_dir: the run writes about" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    check_disk(str(tmp_path), 1000)


def test_memory_is_bounded_by_the_limits_of_the_process():
    code = (
        "import resource\nfrom malt_jax.memory import free_memory\n"
        "resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))\nprint(free_memory())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert 0 < int(done.stdout) < 3 << 30
