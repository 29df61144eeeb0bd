"""One role as a PEFT adapter over the base model."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np

from malt_jax.config.lora import LoraConfig
from malt_jax.export.safetensors_writer import Stored, write_config, write_file
from malt_jax.models.hf_names import PROJECTIONS
from malt_jax.models.lora import Adapter, unstack_adapter
from malt_jax.models.sharding import to_host

SIDES = {"a": "lora_A", "b": "lora_B"}


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
    write_file(folder / "adapter_model.safetensors", tensors, values.__getitem__)
    write_config(
        folder / "adapter_config.json",
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
