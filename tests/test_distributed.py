"""Where a process finds the others; `test_pod.py` runs several."""

from __future__ import annotations

import json
import threading

import pytest

from malt_jax.config.mesh import MeshConfig
from malt_jax.distributed import (
    COORDINATOR,
    PROCESS,
    PROCESSES,
    Place,
    another_gone,
    detectable,
    find_place,
    initialize,
)
from malt_jax.errors import UserError
from malt_jax.hang import Standing, Watch, describe, missing
from malt_jax.storage import writers


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


def waits(count: int, seconds: float) -> Standing:
    return Standing(count=count, waits=True, seconds=seconds)


WORKS = Standing(count=6, seconds=900.0)


@pytest.mark.parametrize(
    ("standings", "late"),
    [
        ([waits(7, 60.0), WORKS], [1]),
        ([waits(7, 60.0), WORKS, waits(7, 1.0), Standing()], [1, 3]),
        ([waits(8, 61.0), waits(7, 70.0)], [1]),
        ([waits(7, 59.0), WORKS], []),  # not yet
        ([waits(7, 60.0), waits(7, 60.0)], []),  # all came, so none is missing
        ([WORKS, WORKS, Standing(count=2, seconds=900.0)], []),  # nobody waits
    ],
)
def test_those_are_missing_for_whom_another_has_waited_too_long(standings, late):
    assert missing(dict(enumerate(standings)), 60.0) == late


def test_the_sentence_names_what_hangs_and_where_the_others_wait():
    hung = Standing("b", 6, "safe point", calls="read (files.py:3) < load (files.py:9)")
    standings = {0: waits(7, 1500.0), **dict.fromkeys(range(1, 8), hung)}
    said = describe(standings, list(range(1, 8)))
    assert "process 1 (b) hangs: it came last to exchange 6 (safe point)" in said
    assert "read (files.py:3)" in said and "process 6" not in said and "2 more" in said
    assert "waited 1,500 s at exchange 7" in said and "status 75" in said


class Client:
    """The key-value store of one process, which must not read what all publish."""

    def __init__(self):
        self.kept: dict[str, str] = {}

    def key_value_set(self, key: str, value: str, allow_overwrite: bool) -> None:
        self.kept[key] = value


def test_a_process_publishes_where_it_waits_and_a_patient_wait_is_none():
    client = Client()
    watch = Watch(client, 3, 4, limit=60.0)
    seen = []
    for patient in (False, True):
        with watch.waiting("shards recovered", patient):
            watch._look()
        seen.append(Standing(**json.loads(client.kept["malt hang/3"])))
    assert [one.waits for one in seen] == [True, False]
    assert [one.count for one in seen] == [1, 2] and seen[1].place == "shards recovered"
    assert "_look (hang.py" in seen[0].calls


def test_work_that_may_take_any_time_is_waited_for_with_patience(monkeypatch):
    monkeypatch.setattr(writers, "_processes", [])
    asked = []
    writers.join(True, print, lambda flag, place, patient: bool(asked.append(patient)))
    writers.on_writer(lambda: None)
    writers.on_writer(lambda: None, patient=True)
    assert asked == [False, True]


def test_a_single_process_is_not_watched():
    initialize(MeshConfig())
    assert "hang" not in [thread.name for thread in threading.enumerate()]


BARRIER = (
    "Timeout waiting at barrier '[op=8.state] state_commit_complete'. Barrier used process ids: "
    "[0, 1, 2, 3]. The original error raised was: INTERNAL: Barrier failed because: task is set to "
    "ERROR: UNAVAILABLE: "
)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("UNKNOWN: Gloo AllGather failed: Connection closed by peer", "another process"),
        (BARRIER + "Task 2 heartbeat timeout. This indicates a crash\n\nRPC: Barrier", "process 2"),
        (BARRIER + "CANCELLED", "another process"),
        ("Timeout waiting at barrier 'x'", None),
        ("list index out of range", None),
    ],
)
def test_an_error_that_another_process_caused_is_told_from_a_fault(text, named, monkeypatch):
    error = TimeoutError(text)
    assert another_gone(error) is None  # of a run of one process
    monkeypatch.setattr(writers, "several", lambda: True)
    found = another_gone(error)
    if named is None:
        assert found is None
    else:
        assert found.startswith(f"{named} of this run has ended or no longer answers")
        assert "\n" not in found
