"""A tiny run without a model, killed and damaged by the scripts that users can run too."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
TOY = [sys.executable, str(ROOT / "tests/storage_protocol.py"), "{run}"]


def script(name: str, *arguments: object, more=()) -> subprocess.CompletedProcess:
    command = [sys.executable, ROOT / "scripts" / name, *arguments, "--", *TOY, *more]
    return subprocess.run([str(part) for part in command], capture_output=True, text=True)


def test_killed_runs_end_with_the_same_bytes_as_an_undisturbed_run():
    answer = script("reliability_kills.py", "--kills", 8, "--anywhere")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "| all | | 8 |" in answer.stdout


def test_runs_whose_machine_vanishes_continue_from_the_store_with_the_same_bytes():
    mirror = ("--mirror", "{store}")
    answer = script("reliability_kills.py", "--kills", 6, "--anywhere", "--bare", more=mirror)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "seconds since the last copy" in answer.stdout


def test_every_kind_of_stage_is_killed_even_if_it_is_short():
    answer = script("reliability_kills.py", "--kills", 12)
    hit = [line.split()[1] for line in answer.stdout.splitlines() if "exit -9" in line]
    assert {"search/000", "train/000/generator", "export"} <= set(hit), answer.stdout


def test_stopped_runs_exit_as_documented_and_continue():
    for name in ("TERM", "INT"):
        answer = script("reliability_kills.py", "--kills", 3, "--signal", name)
        assert answer.returncode == 0, answer.stdout + answer.stderr


def test_damaged_runs_are_refused_and_redone_on_request(tmp_path):
    toy = [*TOY[:2], str(tmp_path / "run")]
    subprocess.run(toy, check=True)
    answer = script("reliability_damage.py", tmp_path / "run", "--damages", 12)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "12 of 12" in answer.stdout

    weights = tmp_path / "run/export/generator/model.safetensors"
    shard = tmp_path / "run/rounds/000/trees/00001.jsonl"
    good, whole = weights.read_bytes(), shard.read_bytes()
    shard.write_bytes(whole.replace(b"question_id", b"question_ID", 1))
    refused = subprocess.run(toy, capture_output=True, text=True)
    assert refused.returncode == 2 and "--redo search/000" in refused.stderr
    subprocess.run([*toy, "--redo", "search/000"], check=True)
    assert weights.read_bytes() == good and shard.read_bytes() == whole
    assert (tmp_path / "run/set-aside/000/rounds/000/trees/00001.jsonl").exists()
