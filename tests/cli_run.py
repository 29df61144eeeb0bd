"""One run of `tiny`'s model by the command line, made once a process and shared by the tests."""

from __future__ import annotations

import functools
import json
import shutil
import sys
import tempfile
from pathlib import Path

import yaml

import tiny
from malt_jax import cli

sys.path.insert(0, str(Path(__file__).parent))  # for `--task.name tiny:LUCK`


@functools.cache
def model() -> Path:
    """A checkpoint whose context is long enough for the prompts of real tasks."""
    folder = tiny.write_model(_folder() / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 4096}))
    return folder


@functools.cache
def flags() -> tuple[str, ...]:
    """The command line of the run, but for the command; the run directory comes last."""
    data = {**tiny.SMALL, "model": {"path": str(model())}, "sampler": tiny.ONE_BATCH}
    data["search"] = {"block": 2}
    data["eval"] = {"trees": 0, "systems": ["sa", "malt"], "baseline": "sa@3"}
    config = _folder() / "config.yaml"
    config.write_text(yaml.safe_dump(data))
    return ("--config", str(config), "--quiet", "--output-dir", str(_folder() / "run"))


@functools.cache
def trained() -> Path:
    """The run directory, searched, labelled and trained."""
    for stage in ("search", "label", "train"):
        assert cli.main([stage, *flags()]) == 0
    shutil.copytree(flags()[-1], _folder() / "as trained")
    return Path(flags()[-1])


def as_trained() -> Path:
    """The same as it was before any test went on with it; to be copied, not used."""
    return trained().parent / "as trained"


@functools.cache
def _folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="malt-cli-"))
