"""Weights laid over eight devices are the weights of one, and nobody reads more than it holds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tiny_models import save_checkpoint

HERE = Path(__file__).parent


def test_every_mesh_holds_the_weights_of_one_device(tmp_path):
    pytest.importorskip("torch", reason="the checkpoint is made by transformers with torch")
    save_checkpoint(tmp_path, "qwen2", max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    done = subprocess.run(
        [sys.executable, HERE / "sharded_loading.py", tmp_path],
        env=os.environ | {"JAX_NUM_CPU_DEVICES": "8"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
