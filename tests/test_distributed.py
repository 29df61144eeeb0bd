"""Where a process finds the others; `test_pod.py` runs several."""

from __future__ import annotations

import pytest

from malt_jax.config.mesh import MeshConfig
from malt_jax.distributed import COORDINATOR, PROCESS, PROCESSES, Place, detectable, find_place
from malt_jax.errors import UserError


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


@pytest.mark.parametrize(
    "env",
    [
        {PROCESSES: "²", PROCESS: "0", COORDINATOR: "a:1"},
        {PROCESSES: "9" * 5000, PROCESS: "0", COORDINATOR: "a:1"},
        {PROCESSES: "2", PROCESS: "0", COORDINATOR: "a:²"},
        {PROCESSES: "2", PROCESS: "1", COORDINATOR: "a:99999999"},
    ],
)
def test_a_place_of_no_number_is_refused(env):
    with pytest.raises(UserError, match="found"):
        find_place(MeshConfig(), env)


def test_a_number_of_slurms_that_is_none_is_refused():
    with pytest.raises(UserError, match="SLURM_NTASKS"):
        detectable({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4(x2)"})
