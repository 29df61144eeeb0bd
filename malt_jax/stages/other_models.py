"""Models that did not come out of the run, measured beside it: `eval.models`.

Each is a Hugging Face folder or hub name, or a PEFT adapter, which answers over its own base.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from malt_jax.errors import UserError
from malt_jax.hashing import fingerprint
from malt_jax.stages.session import Session
from malt_jax.storage import manifest
from malt_jax.storage.signals import raise_if_stopped
from malt_jax.storage.writers import on_writer, wait_for_all

if TYPE_CHECKING:
    from malt_jax.sampling.sampler import Sampler


def check_other(path: str) -> None:
    """Refuses what is neither a checkpoint nor an adapter; of weights only headers are read."""
    from malt_jax.models.adapters import adapter_base
    from malt_jax.models.checkpoint import Checkpoint
    from malt_jax.models.hf_config import read_spec
    from malt_jax.models.hub import local_folder

    try:
        base = adapter_base(Path(path)) if is_adapter(path) else path
        folder, _ = local_folder(base)
        read_spec(folder)
        Checkpoint(folder)
    except UserError as error:
        raise UserError(f"eval.models: {error}") from None


def load_other(session: Session, path: str) -> tuple[Sampler, Any]:
    """A sampler of the model, and the adapter to draw with; None for a model of its own.

    An adapter over the run's own base shares its sampler. Raises UserError if the files have
    changed since this evaluation began.
    """
    from malt_jax.models.adapters import WEIGHTS, adapter_base, load_adapter
    from malt_jax.models.model import load_model
    from malt_jax.sampling.sampler import Sampler

    config, adapter_of = session.config, None
    if is_adapter(path):
        adapter_of = Path(path)
        base = adapter_base(adapter_of)
    else:
        base = path
    if base == config.model.path:
        sampler = session.sampler
    else:
        with session.timed(f"load {base}"):
            dtype = None if config.model.dtype == "auto" else config.model.dtype
            model = load_model(base, dtype=dtype, mesh=session.mesh)
        sampler = Sampler(model, config.sampler, mesh=session.mesh, on_chunk=raise_if_stopped)
    adapter = None
    print_of_files = sampler.model.fingerprint
    if adapter_of:
        adapter = _placed(session, load_adapter(adapter_of, sampler.spec)[0])
        print_of_files = fingerprint([adapter_of / WEIGHTS], data=print_of_files)
    _refuse_changed(session, path, print_of_files)
    return sampler, adapter


def is_adapter(path: str) -> bool:
    """Whether a folder holds a PEFT adapter and no model of its own."""
    return os.path.isfile(Path(path, "adapter_config.json")) and not os.path.isfile(
        Path(path, "config.json")
    )


def _placed(session: Session, adapter: Any) -> Any:
    """The adapter on the devices of the mesh."""
    import jax

    from malt_jax.models.lora import adapter_shardings

    if session.mesh is None:
        return adapter
    return jax.device_put(adapter, adapter_shardings(session.model.spec, adapter, session.mesh))


def _refuse_changed(session: Session, path: str, found: str) -> None:
    known = manifest.load(session.run).get("models", {})
    wait_for_all("models looked up")
    if known.get(path, found) != found:
        raise UserError(
            f"eval.models: the files of {path} are not those this evaluation began with; restore "
            "them or choose another --name."
        )
    on_writer(lambda: manifest.amend(session.run, models={**known, path: found}))
