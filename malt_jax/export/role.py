"""The export folder of one role: a merged model, the adapter beside it, and the model card."""

from __future__ import annotations

import os
from pathlib import Path

import jax
from flax import nnx

from malt_jax.config.lora import LoraConfig
from malt_jax.config.pipeline import RoleConfig
from malt_jax.errors import UserError
from malt_jax.export import generation
from malt_jax.export.merged import write_merged
from malt_jax.export.peft import write_peft
from malt_jax.export.safetensors_writer import write_config
from malt_jax.models.hf_fields import read_json
from malt_jax.models.lora import Adapter
from malt_jax.models.model import Model
from malt_jax.models.peft_layout import has_layout

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
) -> None:
    """Writes what transformers and PEFT load into `folder`, which must be empty or new.

    If `merged`, config, tokenizer and weights in the model's dtype, in files of at most
    `shard_bytes`. `folder/adapter` holds the PEFT adapter, if an `adapter` and the `lora` config it
    was made with are given and PEFT has a layout for it (none for the experts of gpt-oss). `params`
    are fully trained weights, of any dtype, in place of the
    model's. `role` gives the sampling settings of generation_config.json; without it the base
    model's file is kept. `card` is the text of README.md. Raises UserError if `folder` holds
    something. Every process must call this; process 0 writes.
    """
    if adapter is not None and lora is None:
        raise ValueError("an adapter is exported with the LoraConfig it was made with")
    folder, writes = Path(folder), jax.process_index() == 0
    if writes:
        if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
            raise UserError(f"{folder}: already exists; remove it or choose another folder.")
        folder.mkdir(parents=True, exist_ok=True)
    if merged:
        weights = model.params if params is None else params
        # The base model's dtype decides, also for trained weights, which may be float32.
        dtype = jax.tree.leaves(model.params)[0].dtype
        write_merged(folder, model.folder, model.spec, weights, adapter, dtype, shard_bytes)
    if adapter is not None and lora is not None and has_layout(model.spec, lora.targets):
        # A hub name with its revision is valid everywhere; a folder only by its absolute path.
        base = model.path if model.revision else str(model.folder.resolve())
        write_peft(folder / "adapter", model.spec, adapter, lora, base, model.revision)
    if role is not None and writes:
        path = model.folder / generation.NAME
        base_settings = read_json(path) if path.is_file() else {}
        settings = generation.generation_config(base_settings, role, model.tokenizer.end_ids)
        write_config(folder / generation.NAME, settings)
    if card is not None and writes:
        (folder / "README.md").write_text(card, encoding="utf-8")
