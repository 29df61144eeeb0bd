"""Every kind of wrong input: exit 2, one sentence that names place and finding, nothing written."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

from reliability_inputs import faults
from wrong_inputs import CASES, World


def test_the_table_is_large_enough():
    assert len({case.name for case in CASES}) == len(CASES) >= 60


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_wrong_input_is_refused_as_promised(case, tmp_path):
    wrong, message = faults(case, tmp_path)
    assert not wrong, message


def test_the_world_is_right_before_a_case_breaks_it(tmp_path, capsys):
    """Or every case would be refused for something else."""
    from malt_jax import cli

    assert cli.main([*World(tmp_path).command(), "--dry-run"]) == 0
