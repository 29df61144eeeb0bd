"""A checkpoint as google-tunix's own model, for the processes that measure tunix."""

from __future__ import annotations

import functools
from importlib import import_module
from pathlib import Path
from typing import Any

from malt_jax.errors import UserError
from malt_jax.models.hf_config import read_spec

FAMILIES = {"llama": "llama3", "qwen2": "qwen2", "qwen3": "qwen3"}
"""Our name of each family of models that is measured, and the name of tunix's folder for it."""


def load_tunix(folder: str, dtype: str) -> Any:
    """The checkpoint in `folder` as tunix's NNX module; UserError where tunix has no such model.

    tunix does not scale rotary frequencies, so with a model that does (Llama 3.1) it computes other
    logits at the same cost.
    """
    import jax.numpy as jnp

    spec = read_spec(Path(folder))
    biased = spec.out_bias or spec.mlp_bias or spec.qkv_bias != (spec.family == "qwen2")
    if spec.family not in FAMILIES or spec.mixture or any(spec.windows) or biased:
        raise UserError(f"tunix has no model for this {spec.family} checkpoint")
    name = FAMILIES[spec.family]
    code: Any = import_module(f"tunix.models.{name}.model")
    sizes: dict[str, Any] = {
        "num_layers": spec.num_layers,
        "vocab_size": spec.vocab,
        "embed_dim": spec.d_model,
        "hidden_dim": spec.d_mlp,
        "num_heads": spec.heads,
        "head_dim": spec.head_dim,
        "num_kv_heads": spec.kv_heads,
        "rope_theta": spec.rope.theta,
        "norm_eps": spec.norm_eps,
    }
    kind = jnp.dtype(dtype)
    if name == "llama3":  # it computes in the dtype of its weights
        sizes["weight_tying"] = spec.tied
    else:
        sizes |= {"use_tied_embedding": spec.tied, "dtype": kind, "param_dtype": kind}
    if hasattr(code, "apply_rope"):
        # Its attention does not pass the config's base frequency on, so that every model would be
        # rotated by the default of 1,000,000 and write other completions.
        code.apply_rope = functools.partial(code.apply_rope, rope_theta=spec.rope.theta)
    load = import_module(f"tunix.models.{name}.params").create_model_from_safe_tensors
    return load(folder, code.ModelConfig(**sizes), dtype=kind)
