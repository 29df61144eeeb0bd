"""A trained role's export folder: a merged model, and the adapter beside it."""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import jax
from flax import nnx

from malt_jax.config.lora import LoraConfig
from malt_jax.config.pipeline import RoleConfig
from malt_jax.export.generation import generation_config
from malt_jax.export.merged import GENERATION, write_merged
from malt_jax.export.peft import write_peft
from malt_jax.models.hf_config import read_json
from malt_jax.models.lora import Adapter
from malt_jax.models.model import Model
from malt_jax.storage.atomic import atomic_directory

SHARD_BYTES = 4 << 30


def export_role(
    model: Model,
    adapter: Adapter | None,
    folder: str | os.PathLike,
    *,
    lora: LoraConfig | None = None,
    params: nnx.State | None = None,
    role: RoleConfig | None = None,
    merged: bool = True,
    card: str | None = None,
    shard_bytes: int = SHARD_BYTES,
    replace: bool = False,
) -> None:
    """Write what transformers and PEFT load, whole or not at all.

    `folder`: config, tokenizer and weights in the dtype the model ran in, shards of at most
    `shard_bytes`; left out if not `merged`. `folder/adapter`: the PEFT adapter, when an adapter
    and the `lora` it was made with are given. `params`: fully trained weights in place of the
    model's. `role`: how it samples, for generation_config.json; None leaves the base's.
    `card`: the text of README.md. UserError if `folder` exists and is not empty, unless `replace`.
    Every process must call it; process 0 writes.
    """
    if adapter is not None and lora is None:
        raise ValueError("an adapter is exported with the LoraConfig it was made with")
    writes = jax.process_index() == 0
    with atomic_directory(folder, replace) if writes else nullcontext(Path(folder)) as building:
        if merged:
            weights = model.params if params is None else params
            write_merged(
                building, model.folder, model.spec, weights, adapter, shard_bytes,
                generation=None if role is None else _generation(model, role),
            )  # fmt: skip
        if adapter is not None and lora is not None:
            path = model.path if model.revision else str(model.folder.resolve())
            write_peft(building / "adapter", adapter, lora, path, model.revision)
        if card is not None and writes:
            (building / "README.md").write_text(card, encoding="utf-8")


def _generation(model: Model, role: RoleConfig) -> dict[str, Any]:
    path = model.folder / GENERATION
    return generation_config(
        read_json(path) if path.is_file() else {}, role, model.tokenizer.end_ids
    )
