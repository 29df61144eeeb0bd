"""dtype, sharing, full weights, rounds and mesh work with each other, from search to export."""

from __future__ import annotations

import importlib.util
import itertools
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "combinations.py"


@pytest.mark.timeout(1500)
def test_every_two_values_meet_in_a_run_that_ends_well():
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--pairwise"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "6 combinations, all ok" in done.stdout


def test_the_chosen_combinations_hold_every_pair_of_values():
    spec = importlib.util.spec_from_file_location("combinations", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    chosen = script.pairwise()
    for (one, values), (other, others) in itertools.combinations(script.CHOICES.items(), 2):
        for value, second in itertools.product(values, others):
            assert any(c[one] == value and c[other] == second for c in chosen)
