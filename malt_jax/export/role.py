"""The export folder of one role: a merged model, the adapter beside it, and the model card."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from flax import nnx

from malt_jax.config.lora import LoraConfig
from malt_jax.config.pipeline import RoleConfig
from malt_jax.errors import UserError
from malt_jax.export.merged import write_merged
from malt_jax.export.peft import write_peft
from malt_jax.export.safetensors_writer import write_config
from malt_jax.models.hf_fields import read_json
from malt_jax.models.lora import Adapter
from malt_jax.models.model import Model
from malt_jax.models.peft_layout import has_layout
from malt_jax.models.quantized import weights_dtype

SHARD_BYTES = 4 << 30
GENERATION = "generation_config.json"


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
    was made with are given and PEFT has a layout for it. `params` are fully trained weights, of any
    dtype, in place of the model's. `role` gives the sampling settings of generation_config.json;
    without it the base model's file is kept. `card` is the text of README.md. Raises UserError if
    `folder` holds something. Every process must call this; process 0 writes.
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
        dtype = weights_dtype(model.params)
        write_merged(folder, model.folder, model.spec, weights, adapter, dtype, shard_bytes)
    if adapter is not None and lora is not None and has_layout(model.spec, lora.targets):
        # A hub name with its revision is valid everywhere; a folder only by its absolute path.
        base = model.path if model.revision else str(model.folder.resolve())
        write_peft(folder / "adapter", model.spec, adapter, lora, base, model.revision)
    if role is not None and writes:
        path = model.folder / GENERATION
        base_settings = read_json(path) if path.is_file() else {}
        settings = generation_config(base_settings, role, model.tokenizer.end_ids)
        write_config(folder / GENERATION, settings)
    if card is not None and writes:
        (folder / "README.md").write_text(card, encoding="utf-8")


def generation_config(
    base: Mapping[str, Any], role: RoleConfig, end_ids: Sequence[int]
) -> dict[str, Any]:
    """generation_config.json: makes transformers sample a role's turns as our sampler does.

    It has the token ids of the base model's file and the role's own sampling settings. Other
    settings of the base model, such as a repetition penalty, are left out: the role was not
    trained under them. `top_p` and `top_k` are written even when they are off, since transformers
    has defaults of its own. `end_ids`: every token that ends a turn, which may be more than the
    base model's file names.
    """
    ids = {name: value for name, value in base.items() if name.endswith("_token_id")}
    if end_ids:
        ids["eos_token_id"] = end_ids[0] if len(end_ids) == 1 else list(end_ids)
    settings: dict[str, Any] = {
        "do_sample": role.temperature > 0,
        "max_new_tokens": role.max_new_tokens,
    }
    if role.temperature > 0:
        settings |= {"temperature": role.temperature, "top_p": role.top_p, "top_k": role.top_k}
    if role.stop:
        settings["stop_strings"] = list(role.stop)
    return ids | settings
