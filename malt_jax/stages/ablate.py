"""Ablations: variants of a run as lines of its config, each a small run of its own inside it.

A variant changes some fields. What those fields cannot affect is reused: the trees where only
labelling or training changes, the resident model and its compiled programs always.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from malt_jax import config as config_module
from malt_jax import settings
from malt_jax.config import Ablation, Config
from malt_jax.errors import UserError
from malt_jax.evaluation.systems import System, make_systems
from malt_jax.stages.label import label
from malt_jax.stages.search import search
from malt_jax.stages.session import Session, search_stage
from malt_jax.stages.train import train
from malt_jax.storage import manifest
from malt_jax.storage.atomic import make_folder
from malt_jax.storage.rundir import RunDir

TRAINED = "malt"
"""The system a variant is measured by."""


def variant(config: Config, ablation: Ablation) -> Config:
    """The config of one variant: the run's own with the ablation's fields set."""
    data = settings.to_dict(replace(config, ablations=()))
    try:
        for field, value in ablation.set.items():
            data = settings.assign(data, field, value)
        data["eval"] |= {"systems": [TRAINED], "extra": [], "trees": 0}
        return settings.build(Config, data)
    except UserError as error:
        raise UserError(f"ablations.{ablation.name}: {error}") from None


@contextmanager
def opened(session: Session, ablation: Ablation) -> Iterator[Session]:
    """A session of the variant on `RUN/ablations/NAME`, over the same resident model."""
    config = variant(session.config, ablation)
    path = session.run.path / "ablations" / ablation.name
    with RunDir.open(
        path,
        settings.to_dict(config),
        f"ablation {ablation.name}",
        free=config_module.CANNOT_CHANGE_RESULTS,
        facts={"model": manifest.load(session.run).get("model")},
    ) as run:
        sub = Session(config, run, session.progress)
        if config.model == session.config.model:
            sub.__dict__["model"] = session.model
            if config.sampler == session.config.sampler:
                sub.__dict__["sampler"] = session.sampler
        yield sub


def trained_variant(session: Session, sub: Session) -> System:
    """Searches (or adopts the run's trees), labels and trains; returns the system to measure."""
    if _same_search(session.config, sub.config):
        _adopt_trees(session, sub)
    for round in range(sub.config.rounds):
        search(sub, round)
        label(sub, round)
        train(sub, round)
    systems = make_systems(sub.config.eval, sub.pipeline, sub.task.templates)
    return next(system for system in systems if system.name == TRAINED)


def _same_search(one: Config, other: Config) -> bool:
    return _search_fields(one) == _search_fields(other)


def _search_fields(config: Config) -> list[Any]:
    """What the first round's trees depend on."""
    roles = [replace(role, train="none") for role in config.pipeline.roles]
    return [
        config.model,
        config.task,
        config.seed,
        roles,
        config.pipeline.overflow,
        (config.search.block, config.search.shard),
        config.sampler,
    ]


def _adopt_trees(session: Session, sub: Session) -> None:
    """Copies the first round's finished trees; labelling reads the rewards, not the old values."""
    stage = search_stage(0)
    if manifest.stage_done(sub.run, stage):
        return
    copies = []
    for path in manifest.sealed_units(session.run, stage):
        manifest.verify(session.run, [path])
        copy = sub.run.path / path.relative_to(session.run.path)
        make_folder(copy.parent)
        shutil.copyfile(path, copy)
        copies.append(copy)
    manifest.seal(sub.run, stage, copies)
