"""What the long run calls growth; the run itself takes minutes and is not part of the tests."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
from reliability_long import judged

STAGES = [f"{stage}/00{n}" for n in range(3) for stage in ("search", "train")] + ["eval"]


def lines() -> list[dict]:
    held = {"memory": 100.0, "files": 5, "threads": 20, "programs": 30}
    return [{"stage": stage, **held} for stage in STAGES for _ in range(20)]


def test_a_run_that_holds_what_it_held_has_not_grown(capsys):
    assert judged(lines()) == []
    table = capsys.readouterr().out
    assert "| search/000 | 20 | 100 | 1.000 | 5 | 20 | 30 |" in table
    assert "| round 3 | 100 | 5 | 20 | 30 |" in table


@pytest.mark.parametrize(
    ("stage", "name", "factor", "found"),
    [
        ("search/001", "memory", 1.03, "search/001: memory"),
        ("train/002", "files", 2, "train/002: files"),
        ("eval", "threads", 2, "eval: threads"),
        ("search/000", "programs", 2, "search/000: programs"),
        ("train/002", "programs", 2, "round 3: more programs than in the second"),
        ("search/002", "memory", 1.1, "round 3: more memory than in the second"),
    ],
)
def test_what_grows_in_a_stage_or_from_round_to_round_is_named(stage, name, factor, found):
    seen = lines()
    for line in [line for line in seen if line["stage"] == stage][-5:]:
        line[name] *= factor
    assert found in judged(seen)
