"""Pools the finished runs of one config under several seeds into one table of results."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from malt_jax import config as config_module
from malt_jax.config.evaluation import CANNOT_CHANGE_RESULTS
from malt_jax.errors import UserError
from malt_jax.evaluation.schema import Results
from malt_jax.progress import Progress
from malt_jax.regular_files import read_bytes
from malt_jax.stages.bases import base_hashes, facts_of_bases
from malt_jax.stages.measured import TABLES, summarise_seeds
from malt_jax.stages.names import EVAL
from malt_jax.stages.session import Session
from malt_jax.storage import manifest
from malt_jax.storage.rundir import RunDir, differences, run_around

MAY_DIFFER = {"seed", "model.path", "model.revision", *CANNOT_CHANGE_RESULTS}
"""What the configs need not have in common. Where a model lay says nothing: its weights are
compared."""


def pool(folders: Sequence[str | os.PathLike]) -> Results:
    """The results over all runs, in the order of their seeds; writes nothing.

    The runs must be evaluated, with the same base weights, wherever these lay, and configs that
    differ in their seed only. Otherwise `UserError` names the run that does not fit.
    """
    if len(folders) < 2:
        raise UserError("pool: found one run alone; give two or more that differ in their seed.")
    runs = [RunDir.existing(folder) for folder in folders]
    first = runs[0]
    for run in runs:
        if not manifest.stage_done(run, EVAL):
            raise UserError(f"{run.path}: not evaluated yet; run `malt eval` on it first.")
        if "evaluates" in manifest.load(run):
            raise UserError(f"{run.path}: an evaluation of a run; only runs can be pooled.")
        # With defaults, because an older run's file may lack a field that a newer one names.
        theirs, ours = (
            _unlabelled(config_module.with_defaults(one.config)) for one in (first, run)
        )
        if found := differences(theirs, ours, MAY_DIFFER):
            raise UserError(
                f"{run.path}: made with another config than {first.path}: {'; '.join(found)}. "
                "Only runs that differ in their seed can be pooled."
            )
        if _weights(run) != _weights(first):
            raise UserError(f"{run.path}: its base model's weights are not those of {first.path}.")
        if _asked(run) != _asked(first):
            raise UserError(f"{run.path}: was evaluated on other questions than {first.path}.")
    seeds = [run.config["seed"] for run in runs]
    if len(set(seeds)) < len(seeds):
        raise UserError(f"pool: found seeds {seeds}; each run needs a seed of its own.")
    return summarise_seeds(
        [
            Session(config_module.from_dict(run.config), run, Progress(quiet=True))
            for _, run in sorted(zip(seeds, runs, strict=True), key=lambda pair: pair[0])
        ]
    )


def _unlabelled(config: dict[str, Any]) -> dict[str, Any]:
    """Without the labels of ablations, which only tables show: those of the first run are used."""
    plain = [{**ablation, "label": ""} for ablation in config["ablations"]]
    return {**config, "ablations": plain}


def _asked(run: RunDir) -> str | None:
    """The hash of the questions that a run was evaluated on."""
    asked: str | None = (manifest.load(run).get("questions") or {}).get("eval")
    return asked


def check_output(folder: Path) -> None:
    """Refuses a folder where the table would replace anything but an earlier pooled table."""
    path = folder / "results.json"
    if run_around(path):
        raise UserError(f"--output: {folder} is in a run directory; choose a folder of its own.")
    # `lexists` also finds a link to nowhere, which must not be replaced either.
    if not any(os.path.lexists(path.with_suffix(suffix)) for suffix in (".json", *TABLES)):
        return
    # What cannot be read as a pooled table is taken for somebody else's file.
    with contextlib.suppress(OSError, ValueError, UserError, RecursionError):
        earlier = json.loads(read_bytes(path))
        if isinstance(earlier, dict) and {"seeds", "systems", "records"} <= earlier.keys():
            return
    raise UserError(
        f"--output: {folder} holds a results file that `malt pool` has not written; choose another "
        "folder."
    )


def _weights(run: RunDir) -> dict[str, str]:
    return base_hashes(facts_of_bases(run))
