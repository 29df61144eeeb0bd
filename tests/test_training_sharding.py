"""One device and eight, in any order and layout, train alike."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(scope="module")
def results() -> dict[str, list[float]]:
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("sharded_training.py"))],
        env=os.environ | {"JAX_NUM_CPU_DEVICES": "8"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("layout", ["fsdp", "mixed", "permuted"])
def test_losses_over_50_steps_do_not_depend_on_the_devices(results, layout):
    assert len(results["one"]) == 60
    np.testing.assert_allclose(results[layout], results["one"], atol=1e-5)
    assert results["one"][49] < results["one"][0]


def test_full_weights_are_sharded_alike(results):
    np.testing.assert_allclose(results["full_mixed"], results["full_one"], atol=1e-5)


def test_weights_saved_on_eight_devices_are_restored_on_one(results):
    assert results["weights_gap"][0] < 1e-3
