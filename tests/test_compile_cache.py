"""A command that is run again, in another process, compiles nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import cli_run

SCRIPT = """
import sys, jax
sys.path.insert(0, sys.argv.pop(1))
compiled = []
note = lambda event, **_: compiled.append(event) if event.endswith("/cache_misses") else None
jax.monitoring.register_event_listener(note)
from malt_jax import cli
assert cli.main(sys.argv[1:]) == 0
print(len(compiled))
"""


def test_the_second_run_of_a_command_compiles_nothing(tmp_path):
    def run(name: str) -> int:
        command = ["search", *cli_run.flags()[:-1], str(tmp_path / name)]
        command += ["--sampler.cache-dir", str(tmp_path / "programs")]
        here = str(Path(__file__).parent)
        # Without the cache of the tests, which would be used in place of the run's.
        environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, here, *command],
            env=environment, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return int(done.stdout.splitlines()[-1])

    assert run("first") > 0
    assert run("second") == 0
