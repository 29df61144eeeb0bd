"""One role as a PEFT adapter over the base model, written and read."""

from __future__ import annotations

import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

from malt_jax.config.lora import LoraConfig
from malt_jax.errors import UserError
from malt_jax.export.safetensors_writer import Stored, write_config, write_file
from malt_jax.models.hf_names import PROJECTIONS
from malt_jax.models.lora import Adapter, projections, unstack_adapter
from malt_jax.models.sharding import to_host
from malt_jax.models.spec import ModelSpec
from malt_jax.regular_files import read_bytes

SIDES = {"a": "lora_A", "b": "lora_B"}
WEIGHTS = "adapter_model.safetensors"
SETTINGS = "adapter_config.json"
NOT_READ = ("use_dora", "modules_to_save", "rank_pattern", "alpha_pattern", "layer_replication")
"""Settings of PEFT that change what an adapter computes and that are refused when set."""


def write_peft(
    folder: Path, adapter: Adapter, lora: LoraConfig, base: str, revision: str | None
) -> None:
    """Writes adapter_config.json and adapter_model.safetensors (float32, as trained).

    `base` and `revision` name the model that the adapter belongs to. Every process must call this;
    process 0 writes.
    """
    # PEFT names a factor by the place of its projection in the transformers model.
    factors = {
        f"base_model.model.model.layers.{i}.{PROJECTIONS[target]}.{SIDES[side]}.weight": x
        for i, layer in enumerate(unstack_adapter(adapter).layers)
        for target, pair in sorted(layer.items())
        for side, x in sorted(pair.items())
    }
    # Our factors are [in, rank] and [rank, out]; PEFT stores their transposes.
    values = {name: to_host(x).astype(np.float32).T for name, x in factors.items()}
    if jax.process_index() != 0:
        return
    folder.mkdir(exist_ok=True)
    tensors = {name: Stored(value.shape, value.dtype) for name, value in values.items()}
    write_file(folder / WEIGHTS, tensors, values.__getitem__)
    write_config(
        folder / SETTINGS,
        {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base,
            "revision": revision,
            "inference_mode": True,
            "r": lora.rank,
            # An integer where it is whole: PEFT and vLLM declare it as one.
            "lora_alpha": int(lora.alpha) if lora.alpha == int(lora.alpha) else lora.alpha,
            "use_rslora": lora.rslora,
            "use_dora": False,
            "lora_dropout": lora.dropout,
            "target_modules": [PROJECTIONS[target].split(".")[-1] for target in lora.targets],
            "bias": "none",
            "fan_in_fan_out": False,
            "init_lora_weights": True,
            "modules_to_save": None,
        },
    )


def read_settings(folder: Path) -> dict:
    """An adapter's adapter_config.json; raises UserError for what is not a plain LoRA adapter."""
    path = folder / SETTINGS
    try:
        settings = json.loads(read_bytes(path))
        kind, rank = settings["peft_type"], settings["r"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: not the settings of a PEFT adapter ({error}).") from None
    if kind != "LORA" or not isinstance(rank, int) or rank < 1:
        raise UserError(f"{path}: found {kind!r} of rank {rank!r}, allowed: LORA, rank 1 or more.")
    for name in NOT_READ:
        if settings.get(name):
            raise UserError(f"{path}: {name} is set, which is not supported; merge the adapter.")
    return settings


def read_peft(folder: Path, spec: ModelSpec) -> Adapter:
    """The adapter in a folder of PEFT, for a decoder with one module per layer.

    Raises UserError for tensors that do not fit the model.
    """
    settings, path = read_settings(folder), folder / WEIGHTS
    if not path.is_file():
        raise UserError(f"{folder}: no {WEIGHTS}, so not a PEFT adapter that can be read.")
    alpha, rank = float(settings.get("lora_alpha", settings["r"])), settings["r"]
    places = {place: target for target, place in PROJECTIONS.items()}
    sides = {name: side for side, name in SIDES.items()}
    layers: list[dict] = [{} for _ in range(spec.num_layers)]
    for name, value in load_file(path).items():
        found = re.fullmatch(r"(?:base_model\.model\.)?model\.layers\.(\d+)\.(.+)\.(lora_[AB])"
                             r"(?:\.default)?\.weight", name)  # fmt: skip
        if not found or found[2] not in places or int(found[1]) >= spec.num_layers:
            raise UserError(f"{path}: {name} is not a projection of this model.")
        target, side = places[found[2]], sides[found[3]]
        (d_in, _), (d_out, _) = projections(spec)[target]
        expected = (rank, d_in) if side == "a" else (d_out, rank)
        if value.shape != expected:
            raise UserError(f"{path}: {name} has shape {value.shape}, this model wants {expected}.")
        # PEFT stores the transposes of our factors.
        factor = jnp.asarray(value.T, jnp.float32)
        layers[int(found[1])].setdefault(target, {})[side] = factor
    if any(len(pair) < 2 for layer in layers for pair in layer.values()) or not any(layers):
        raise UserError(f"{path}: a projection has only one of its two factors.")
    return Adapter(layers, alpha / (rank**0.5 if settings.get("use_rslora") else rank))
