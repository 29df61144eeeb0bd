"""Ablations: variants of a run as lines of its config, each a run of its own inside the run.

A variant changes some fields. Stages that those fields cannot affect are copied from the run: the
trees if only labelling or training changes, the SFT weights if only DPO changes, and the whole
first round if there is a second one. Resident models and their compiled programs are shared.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from malt_jax.config import reading
from malt_jax.config.evaluation import CANNOT_CHANGE_RESULTS
from malt_jax.config.run import with_defaults
from malt_jax.stages.label import label
from malt_jax.stages.search import search
from malt_jax.stages.session import Session
from malt_jax.stages.train import train
from malt_jax.stages.variants import Variant, shared_stages
from malt_jax.storage import manifest
from malt_jax.storage.atomic import make_folder
from malt_jax.storage.rundir import RunDir
from malt_jax.storage.writers import is_writer


@contextmanager
def opened(session: Session, variant: Variant) -> Iterator[Session]:
    """A session of the variant in `RUN/ablations/NAME`, with the run's resident models."""
    config = variant.config
    path = session.run.path / "ablations" / variant.folder
    with RunDir.open(
        path,
        reading.to_dict(config),
        f"ablation {variant.folder}",
        free=CANNOT_CHANGE_RESULTS,
        complete=with_defaults,
        mirror=config.mirror,
        mirror_seconds=config.mirror_seconds,
        inside=session.run,
    ) as run:
        sub = Session(config, run, session.progress, shared=session)
        try:
            yield sub
        finally:
            sub.close()


def train_variant(session: Session, sub: Session) -> None:
    """Trains a variant: copies the stages it has in common with the run and does the others."""
    for stage in shared_stages(session.config, sub.config):
        _adopt(session, sub, stage)
    # What was copied is sealed, so these calls do only what is left.
    for round in range(sub.config.rounds):
        search(sub, round)
        label(sub, round)
        train(sub, round)


def _adopt(session: Session, sub: Session, stage: str) -> None:
    """Copies what a finished stage of the run made; labelling reads rewards, not old values."""
    if manifest.stage_done(sub.run, stage):
        return  # verified by the stage itself
    with sub.journal(stage) as journal:
        for path in manifest.sealed_units(session.run, stage):
            # Before the copy, because sealing would vouch for whatever was copied.
            manifest.verify(session.run, [path])
            copy = sub.run.path / path.relative_to(session.run.path)
            if is_writer():
                make_folder(copy.parent)
                if path.is_dir():
                    shutil.copytree(path, copy, dirs_exist_ok=True)
                else:
                    shutil.copyfile(path, copy)
            journal.add(copy)
