"""One role as a PEFT adapter over the base model."""

from __future__ import annotations

from pathlib import Path

import jax

from malt_jax.config.lora import LoraConfig
from malt_jax.export.safetensors_writer import Stored, write_config, write_file
from malt_jax.models.adapters import CONFIG, WEIGHTS
from malt_jax.models.hub import EMBEDDED, local_folder
from malt_jax.models.lora import Adapter, targets_of, unstack_adapter
from malt_jax.models.peft_layout import exported_rank, module_names, to_peft
from malt_jax.models.sharding import to_host
from malt_jax.models.spec import ModelSpec


def write_peft(
    folder: Path,
    spec: ModelSpec,
    adapter: Adapter,
    lora: LoraConfig,
    base: str,
    revision: str | None,
) -> None:
    """Writes adapter_config.json and adapter_model.safetensors (float32, as trained).

    `base` and `revision` name the model that the adapter belongs to; the model in the package is
    named as configs and cards name it, because its folder is another one on every machine. Every
    process must call this; process 0 writes.
    """
    layers = jax.tree.map(to_host, unstack_adapter(adapter).layers)
    if jax.process_index() != 0:
        return
    values = to_peft(spec, layers)
    folder.mkdir(exist_ok=True)
    tensors = {name: Stored(value.shape, value.dtype) for name, value in values.items()}
    write_file(folder / WEIGHTS, tensors, values.__getitem__)
    targets = targets_of(spec, lora)
    rank = exported_rank(spec, targets, lora.rank)
    # Where the layout needs a larger rank, alpha grows with it and the scale stays.
    alpha = lora.alpha if rank == lora.rank else lora.scale * rank
    write_config(
        folder / CONFIG,
        {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": _name(base),
            "revision": revision,
            "inference_mode": True,
            "r": rank,
            # An integer where it is whole: PEFT and vLLM declare it as one.
            "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
            "use_rslora": lora.rslora and rank == lora.rank,
            "use_dora": False,
            "lora_dropout": lora.dropout,
            "target_modules": _target_modules(spec, targets),
            "bias": "none",
            "fan_in_fan_out": False,
            "init_lora_weights": True,
            "modules_to_save": None,
        },
    )


def _name(base: str) -> str:
    embedded, _ = local_folder(EMBEDDED)
    return EMBEDDED if Path(base).resolve() == embedded.resolve() else base


def _target_modules(spec: ModelSpec, targets: tuple[str, ...]) -> list[str] | str:
    """The modules with an adapter by the last part of their names, each once."""
    names = [module_names(spec, target)[0].split(".")[-1] for target in targets]
    unique = list(dict.fromkeys(names))
    # The image tower has projections of the same names.
    return rf".*language_model.*\.({'|'.join(unique)})" if spec.tower else unique
