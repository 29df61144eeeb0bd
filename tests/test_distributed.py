"""Where a process finds the others, and that several compute what one does."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from malt_jax.distributed import COORDINATOR, PROCESS, PROCESSES, Place, detectable, find_place
from malt_jax.errors import UserError
from malt_jax.models.mesh_config import MeshConfig
from tiny import write_model

WORKER = Path(__file__).with_name("distributed_pair.py")


def test_alone_nothing_is_looked_for():
    assert find_place(MeshConfig(), {}) is None
    assert not detectable({"JAX_PLATFORMS": "cpu", "SLURM_JOB_ID": "7", "SLURM_NTASKS": "1"})


def test_fields_go_before_the_environment():
    env = {COORDINATOR: "a:1", PROCESSES: "4", PROCESS: "3"}
    assert find_place(MeshConfig(), env) == Place("a:1", 4, 3)
    assert find_place(MeshConfig(process=0), env) == Place("a:1", 4, 0)


@pytest.mark.parametrize(
    ("env", "named"),
    [
        ({COORDINATOR: "a:1"}, "mesh.processes"),
        ({PROCESSES: "2", PROCESS: "0"}, "mesh.coordinator"),
        ({COORDINATOR: "a:1", PROCESSES: "2", PROCESS: "2"}, "mesh.process"),
        ({COORDINATOR: "a:1", PROCESSES: "0", PROCESS: "0"}, "mesh.processes"),
        ({COORDINATOR: "a", PROCESSES: "2", PROCESS: "0"}, "mesh.coordinator"),
        ({COORDINATOR: "a:1", PROCESSES: "two", PROCESS: "0"}, PROCESSES),
    ],
)
def test_half_a_place_is_refused_by_name(env, named):
    with pytest.raises(UserError, match=named):
        find_place(MeshConfig(), env)


@pytest.mark.parametrize(
    "env",
    [
        {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2"},
        {"TPU_WORKER_HOSTNAMES": "t-0,t-1"},
        {"MEGASCALE_COORDINATOR_ADDRESS": "host"},
    ],
)
def test_clusters_jax_knows_are_detected(env):
    assert detectable(env)


def test_two_processes_draw_and_train_as_one(tmp_path):
    model = write_model(tmp_path / "model")
    alone, pair = _together(1, model, tmp_path), _together(2, model, tmp_path)
    assert pair[0]["tokens"] == pair[1]["tokens"] == alone[0]["tokens"]
    np.testing.assert_allclose(pair[0]["losses"], alone[0]["losses"], atol=1e-5)
    assert pair[0]["losses"] == pair[1]["losses"]


def _together(processes: int, model: Path, tmp_path: Path) -> list[dict]:
    """What each of the processes found."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{probe.getsockname()[1]}"
    flags = f"--xla_force_host_platform_device_count={2 // processes}"
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    folder = tmp_path / f"with-{processes}"
    words = [sys.executable, str(WORKER), coordinator, str(processes)]
    running = [
        subprocess.Popen(
            [*words, str(i), str(model), str(folder)],
            env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for i in range(processes)
    ]  # fmt: skip
    try:
        outputs = [process.communicate(timeout=280) for process in running]
    finally:
        for process in running:
            process.kill()
    for process, (_, errors) in zip(running, outputs, strict=True):
        assert process.returncode == 0, errors[-3000:]
    return [json.loads(out.splitlines()[-1]) for out, _ in outputs]
