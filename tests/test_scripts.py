"""The scripts that take hours say what they would do, over any model and questions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import cli_run

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(("form", "searched"), [((), "1,000"), (("--cpu", "--seeds", "0 1"), "60")])
def test_the_real_model_script_in_both_forms(form, searched, tmp_path):
    for split, count in (("train", 1000), ("eval", 660)):
        rows = ({"question": f"{split} {i}?", "answer": f"#### {i}"} for i in range(count))
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["sh", "scripts/qwen25_gsm8k.sh", *form, "--dry-run", "--model.path", cli_run.model()]
    for split in ("train", "eval"):
        words += [f"--task.{split}-path", tmp_path / f"{split}.jsonl"]
    # `malt` is found beside this Python, as in an activated environment.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        list(map(str, words)), cwd=ROOT, env={**os.environ, "PATH": path}, capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"{searched} questions to search") == max(1, len(form) - 1)
    assert "DPO" in done.stdout and "sa: generator:base" in done.stdout
