"""Reads config.json of a Hugging Face checkpoint into a ModelSpec, or refuses it by field.

Both spellings are read: that of transformers 4 (`rope_theta`, `rope_scaling`,
`rope_local_base_freq`, `sliding_window_pattern`) and that of transformers 5 (`rope_parameters`,
`layer_types`). No weight is opened, and nothing from the checkpoint is executed.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from malt_jax.checks import no_repeats, show
from malt_jax.errors import UserError
from malt_jax.models.spec import ModelSpec, Rope

MAX_BYTES = 16 << 20
"""Largest JSON file of a checkpoint that is read as a whole."""


@dataclass(frozen=True)
class Family:
    """What an architecture fixes, and its defaults for what config.json may leave out."""

    architecture: str
    tied: bool = False
    head_dim: int | None = None
    """Default; None: hidden_size / num_attention_heads."""
    window: int | None = None
    gemma: bool = False
    qk_norm: bool = False


# `tied`, `head_dim` and `window` count only where config.json leaves the field out.
FAMILIES = {
    "llama": Family("LlamaForCausalLM"),
    "mistral": Family("MistralForCausalLM", window=4096),
    "qwen2": Family("Qwen2ForCausalLM", window=4096),
    "qwen3": Family("Qwen3ForCausalLM", head_dim=128, window=4096, qk_norm=True),
    "gemma2": Family("Gemma2ForCausalLM", tied=True, head_dim=256, window=4096, gemma=True),
    "gemma3_text": Family(
        "Gemma3ForCausalLM", tied=True, head_dim=256, window=4096, gemma=True, qk_norm=True
    ),
}
SUPPORTED = "Llama 2/3/3.1/3.2, SmolLM2, Mistral, Qwen2/2.5, Qwen3, Gemma 2 and Gemma 3 text"
ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
SLIDING, FULL = "sliding_attention", "full_attention"

REFUSED = {
    "auto_map": "asks for code shipped with the checkpoint, which is never run",
    "quantization_config": "holds quantised weights; use the unquantised checkpoint",
    "vision_config": "is multimodal; use the text-only checkpoint",
    "audio_config": "is multimodal; use the text-only checkpoint",
    "text_config": "is multimodal; use the text-only checkpoint",
    "num_local_experts": "is a mixture of experts",
    "num_experts": "is a mixture of experts",
    "n_routed_experts": "is a mixture of experts",
    "use_bidirectional_attention": "attends in both directions",
    "attention_chunk_size": "attends in chunks",
}
"""Keys that, set to anything but null or false, mean a model that this decoder does not support."""


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a checkpoint's file."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"{path}: larger than {MAX_BYTES >> 20} MiB, which no such file is.")
        # By default `json` keeps the last of two equal names, and which one counts would depend on
        # the reader. A byte order mark at the beginning is accepted.
        data = json.loads(path.read_bytes().decode("utf-8-sig"), object_pairs_hook=no_repeats)
    except OSError as error:
        raise UserError(f"{path}: could not be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise unreadable(path, f"not JSON: {error}") from error
    if not isinstance(data, dict):
        raise UserError(f"{path}: expected a JSON object, found {type(data).__name__}.")
    return data


def unreadable(path: Path, finding: str) -> UserError:
    """The refusal of a checkpoint's file that is not what its name says."""
    with open(path, "rb") as file:
        start = file.read(32)
    if start.startswith(b"version https://git-lfs"):
        return UserError(
            f"{path}: a Git LFS pointer, not the file itself; fetch the file with git lfs pull."
        )
    return UserError(f"{path}: {finding}; download the checkpoint again.")


class _Fields:
    """Typed access to one JSON object; every refusal names file and field."""

    def __init__(self, path: Path, data: dict[str, Any], prefix: str = ""):
        self.path, self.data, self.prefix = path, data, prefix

    def refuse(self, key: str, finding: str) -> UserError:
        return UserError(f"{self.path}: {self.prefix}{key} {finding}.")

    def has(self, key: str) -> bool:
        # An absent key and null mean the same, except for `sliding_window` (see `_windows`).
        return self.data.get(key) is not None

    def _value(self, key: str, default: Any) -> Any:
        value = self.data.get(key)
        value = default if value is None else value
        if value is None:
            raise self.refuse(key, "is missing")
        return value

    def integer(self, key: str, default: int | None = None, largest: int = 1 << 24) -> int:
        value = self._value(key, default)
        # In Python a bool is an int, so `true` would pass as 1.
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= largest:
            raise self.refuse(key, f"= {show(value)}: expected a whole number from 1 to {largest}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.refuse(key, f"= {show(value)}: expected a number")
        if not 0 < value < 1e30 or not math.isfinite(value):
            raise self.refuse(key, f"= {show(value)}: expected a positive, finite number")
        return float(value)

    def flag(self, key: str, default: bool = False) -> bool:
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise self.refuse(key, f"= {show(value)}: expected true or false")
        return value

    def section(self, key: str) -> _Fields:
        value = self.data.get(key)
        if not isinstance(value, dict):
            raise self.refuse(key, f"= {show(value)}: expected an object")
        return _Fields(self.path, value, f"{self.prefix}{key}.")


def read_spec(folder: Path) -> ModelSpec:
    """The ModelSpec of the checkpoint in `folder`; UserError for a model that is not supported."""
    path = folder / "config.json"
    fields = _Fields(path, read_json(path))
    name, family = _family(fields)
    heads = fields.integer("num_attention_heads")
    kv_heads = fields.integer("num_key_value_heads", default=heads)
    if heads % kv_heads:
        raise fields.refuse("num_key_value_heads", f"= {kv_heads} does not divide {heads} heads")
    width = fields.integer("hidden_size")
    head_dim = fields.integer("head_dim", default=family.head_dim or width // heads)
    if head_dim % 2:
        raise fields.refuse("head_dim", f"= {head_dim}: rotary embedding needs an even number")
    layers = fields.integer("num_hidden_layers", largest=10_000)
    rope, local_rope = _ropes(fields, name)
    # Qwen2 has no field for it: its queries, keys and values have a bias, its output has none.
    bias = name == "qwen2" or fields.flag("attention_bias")
    # Gemma scales queries by a number of its own in place of the width of a head.
    scale_by = fields.number("query_pre_attn_scalar", 256.0) if family.gemma else head_dim
    return ModelSpec(
        family=name,
        vocab=fields.integer("vocab_size"),
        d_model=width,
        num_layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        d_mlp=fields.integer("intermediate_size"),
        context=fields.integer("max_position_embeddings", largest=1 << 30),
        rope=rope,
        local_rope=local_rope,
        windows=_windows(fields, name, family, layers),
        activation=_activation(fields, family),
        norm_eps=fields.number("rms_norm_eps", 1e-6),
        norm_plus_one=family.gemma,
        sandwich_norms=family.gemma,
        qk_norm=family.qk_norm,
        qkv_bias=bias,
        out_bias=bias and name != "qwen2",
        mlp_bias=name == "llama" and fields.flag("mlp_bias"),
        tied=fields.flag("tie_word_embeddings", family.tied),
        embed_scale=width**0.5 if family.gemma else 1.0,
        query_scale=scale_by**-0.5,
        attention_softcap=_softcap(fields, family, "attn_logit_softcapping"),
        logit_softcap=_softcap(fields, family, "final_logit_softcapping"),
    )


def _family(fields: _Fields) -> tuple[str, Family]:
    name = fields.data.get("model_type")
    # Before the model type, so that the message names the cause: a multimodal checkpoint, for one,
    # has a model type of its own as well.
    for key, meaning in REFUSED.items():
        if fields.data.get(key):
            raise fields.refuse(key, f"is set: this model {meaning}. Supported: {SUPPORTED}")
    if not isinstance(name, str) or name not in FAMILIES:
        raise fields.refuse(
            "model_type", f"= {show(name)} is not supported. Supported: {SUPPORTED}"
        )
    family = FAMILIES[name]
    declared = fields.data.get("architectures")
    if declared is not None and declared != [family.architecture]:
        raise fields.refuse(
            "architectures", f"= {show(declared)}: for {name} expected [{family.architecture!r}]"
        )
    return name, family


def _ropes(fields: _Fields, name: str) -> tuple[Rope, Rope | None]:
    """The rope of full-attention layers and, for Gemma 3, of sliding-window layers."""
    # In both spellings only Gemma 3 has two ropes. transformers 4 gives the second one a field of
    # its own and no scaling; transformers 5 gives each kind of layer a whole section.
    if not fields.has("rope_parameters"):  # transformers 4
        theta = fields.number("rope_theta", 1e6 if name == "gemma3_text" else 1e4)
        scaling = (
            fields.section("rope_scaling")
            if fields.has("rope_scaling")
            else _Fields(fields.path, {}, "rope_scaling.")
        )
        if name != "gemma3_text":
            return _rope(fields, scaling, theta), None
        return _rope(fields, scaling, theta), Rope(fields.number("rope_local_base_freq", 1e4))
    parameters = fields.section("rope_parameters")
    nested = any(isinstance(value, dict) for value in parameters.data.values())
    if nested != (name == "gemma3_text"):
        raise fields.refuse(
            "rope_parameters",
            "has one entry per layer type"
            if nested
            else "lacks full_attention and sliding_attention entries",
        )
    if not nested:
        return _rope(fields, parameters, fields.number("rope_theta", 1e4)), None
    wide, local = parameters.section(FULL), parameters.section(SLIDING)
    return _rope(fields, wide, 1e6), _rope(fields, local, 1e4)


def _rope(fields: _Fields, section: _Fields, default_theta: float) -> Rope:
    # Older files write `type`.
    key = "rope_type" if section.has("rope_type") else "type"
    kind = section.data.get(key) or "default"
    theta = section.number("rope_theta", default_theta)
    partial = section.data.get("partial_rotary_factor", fields.data.get("partial_rotary_factor"))
    if partial not in (None, 1, 1.0):
        raise section.refuse("partial_rotary_factor", f"= {show(partial)} is not supported")
    if kind == "default":
        return Rope(theta)
    if kind == "linear":
        return Rope(theta, "linear", section.number("factor"))
    if kind == "llama3":
        low, high = section.number("low_freq_factor"), section.number("high_freq_factor")
        if not low < high:
            raise section.refuse("high_freq_factor", f"= {high}: expected above {low}")
        return Rope(
            theta,
            "llama3",
            factor=section.number("factor"),
            low_freq_factor=low,
            high_freq_factor=high,
            original_context=section.integer("original_max_position_embeddings", largest=1 << 30),
        )
    raise section.refuse(
        key, f"= {show(kind)} is not supported. Supported: default, linear, llama3"
    )


def _windows(fields: _Fields, name: str, family: Family, layers: int) -> tuple[int | None, ...]:
    """The sliding window of each layer, or None for full attention; () where no layer has one."""
    # 1. The size: config.json's, where null means no window, or else the family's default.
    size = family.window
    if "sliding_window" in fields.data:
        size = None if not fields.has("sliding_window") else fields.integer("sliding_window")
    if name == "llama" or (name.startswith("qwen") and not fields.flag("use_sliding_window")):
        size = None
    # 2. The layers that have it: as listed, or else by the family's own pattern.
    kinds = fields.data.get("layer_types")
    if kinds is None:
        if name == "mistral":
            kinds = [SLIDING] * layers
        elif name == "gemma2":
            kinds = [FULL if i % 2 else SLIDING for i in range(layers)]
        elif name == "gemma3_text":
            period = fields.integer("sliding_window_pattern", 6)
            kinds = [SLIDING if (i + 1) % period else FULL for i in range(layers)]
        else:
            # Qwen's `max_window_layers` counts the layers before the windows, not those with one.
            first = 0 if size is None else _first_window_layer(fields)
            kinds = [SLIDING if i >= first else FULL for i in range(layers)]
    elif (
        not isinstance(kinds, list)
        or len(kinds) != layers
        or any(kind not in (SLIDING, FULL) for kind in kinds)
    ):
        raise fields.refuse(
            "layer_types", f"must list {layers} times {SLIDING!r} or {FULL!r}, one per layer"
        )
    elif name == "mistral" and FULL in kinds and size is not None:
        raise fields.refuse("layer_types", "mixes layer types, which Mistral does not")
    elif size is None and SLIDING in kinds:
        raise fields.refuse("layer_types", "has sliding windows but sliding_window is not set")
    if size is None or SLIDING not in kinds:
        return ()
    return tuple(size if kind == SLIDING else None for kind in kinds)


def _first_window_layer(fields: _Fields) -> int:
    value = fields.data.get("max_window_layers", 28)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise fields.refuse("max_window_layers", f"= {show(value)}: expected a whole number")
    return value


def _activation(fields: _Fields, family: Family) -> str:
    key = "hidden_activation" if family.gemma else "hidden_act"
    name = fields.data.get(key) or ("gelu_pytorch_tanh" if family.gemma else "silu")
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise fields.refuse(
            key, f"= {show(name)} is not supported. Supported: {', '.join(ACTIVATIONS)}"
        )
    return ACTIVATIONS[name]


def _softcap(fields: _Fields, family: Family, key: str) -> float | None:
    return fields.number(key) if family.gemma and fields.has(key) else None
