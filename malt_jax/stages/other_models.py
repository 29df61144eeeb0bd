"""Models that did not come out of the run, measured beside it: `eval.models`.

Each is a Hugging Face folder or hub name, or a PEFT adapter, which answers over its own base.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from malt_jax.errors import UserError
from malt_jax.hashing import fingerprint
from malt_jax.stages.session import Session
from malt_jax.storage import manifest
from malt_jax.storage.signals import raise_if_stopped
from malt_jax.storage.writers import on_writer, wait_for_all

if TYPE_CHECKING:
    from malt_jax.config.model import ModelConfig
    from malt_jax.config.run import Config
    from malt_jax.sampling.sampler import Sampler


def check_other(path: str) -> None:
    """Refuses what is neither a checkpoint nor an adapter; of a model only headers are read."""
    from malt_jax.models.adapters import adapter_base, load_adapter
    from malt_jax.models.checkpoint import Checkpoint
    from malt_jax.models.hf_config import read_spec
    from malt_jax.models.hub import local_folder

    try:
        place = _adapter_place(path)
        folder, _ = local_folder(*(adapter_base(place) if place else (path, None)))
        spec = read_spec(folder)
        Checkpoint(folder, tower=spec.tower)
        if place:
            load_adapter(place, spec)
    except UserError as error:
        raise error.at("eval.models") from None


def load_other(session: Session, path: str) -> tuple[Sampler, Any]:
    """A sampler of the model, and the adapter to draw with; None for a model of its own.

    A base model of the run, and an adapter over one, share its sampler. Raises UserError if the
    files have changed since this evaluation began.
    """
    from malt_jax.models.adapters import WEIGHTS, adapter_base, load_adapter
    from malt_jax.sampling.sampler import Sampler
    from malt_jax.training.weights import place_adapter

    config, place = session.config, _adapter_place(path)
    base, revision = adapter_base(place) if place else (path, None)
    if known := _base_of_run(config, base, revision):
        sampler = session.bases.sampler(known)
    else:
        model = session.bases.load(replace(config.model, path=base, revision=revision))
        sampler = Sampler(model, config.sampler, mesh=session.mesh, on_chunk=raise_if_stopped)
    adapter = None
    print_of_files = sampler.model.fingerprint
    if place:
        adapter = place_adapter(load_adapter(place, sampler.spec)[0], sampler.spec, session.mesh)
        print_of_files = fingerprint([place / WEIGHTS], data=print_of_files)
    _refuse_changed(session, path, print_of_files)
    return sampler, adapter


def _adapter_place(path: str) -> Path | None:
    """The folder of a PEFT adapter, from the hub if it is there; None for a model of its own.

    An exported role is a model if its weights were merged, else the adapter in it.
    """
    from malt_jax.models.hub import adapter_folder

    if os.path.isfile(Path(path, "config.json")):
        return None
    try:
        return adapter_folder(path)
    except UserError:
        return None  # what is no model either is refused as a model


def _base_of_run(config: Config, base: str, revision: str | None) -> ModelConfig | None:
    """Which of the run's base models this is, by whatever name; None if it is another one."""
    from malt_jax.models.hub import local_folder

    for known in config.bases:
        if base == known.path and revision in (None, known.revision):
            return known
    folder = local_folder(base, revision)[0].resolve()
    same = (k for k in config.bases if local_folder(k.path, k.revision)[0].resolve() == folder)
    return next(same, None)


def _refuse_changed(session: Session, path: str, found: str) -> None:
    known = manifest.load(session.run).get("models", {})
    wait_for_all("models looked up")
    if known.get(path, found) != found:
        raise UserError(
            f"eval.models: the files of {path} are not those this evaluation began with; restore "
            "them or choose another --name."
        )
    on_writer(lambda: manifest.amend(session.run, models={**known, path: found}))
