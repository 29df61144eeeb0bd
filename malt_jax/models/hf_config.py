"""Reads config.json of a Hugging Face checkpoint into a ModelSpec, or refuses it by field.

Both spellings are read: that of transformers 4 (`rope_theta`, `rope_scaling`,
`rope_local_base_freq`, `sliding_window_pattern`) and that of transformers 5 (`rope_parameters`,
`layer_types`). No weight is opened, and nothing from the checkpoint is executed.
"""

from __future__ import annotations

from pathlib import Path

from malt_jax.checks import show
from malt_jax.models.hf_families import ACTIVATIONS, FAMILIES, REFUSED, SUPPORTED, TOWERS, Family
from malt_jax.models.hf_fields import Fields, read_json
from malt_jax.models.hf_rope import FULL, SLIDING, read_ropes
from malt_jax.models.spec import Mixture, ModelSpec, Rope


def read_spec(folder: Path) -> ModelSpec:
    """The ModelSpec of the checkpoint in `folder`; UserError for a model that is not supported."""
    path = folder / "config.json"
    fields, name, tower = _family(Fields(path, read_json(path)))
    family = FAMILIES[name]
    heads = fields.integer("num_attention_heads")
    kv_heads = fields.integer("num_key_value_heads", default=heads)
    if heads % kv_heads:
        raise fields.refuse("num_key_value_heads", f"= {kv_heads} does not divide {heads} heads")
    width = fields.integer("hidden_size")
    head_dim = fields.integer("head_dim", default=width // heads)
    if head_dim % 2:
        raise fields.refuse("head_dim", f"= {head_dim}: rotary embedding needs an even number")
    layers = fields.integer("num_hidden_layers", largest=10_000)
    rope, local_rope = read_ropes(fields, family, head_dim)
    gemma, granite = name.startswith("gemma"), name == "granite"
    # Qwen2 has no field for it: its queries, keys and values have a bias, its output has none.
    bias = name == "qwen2" or fields.flag("attention_bias")
    # Gemma scales queries by a number of its own in place of the width of a head.
    query_scale = (fields.number("query_pre_attn_scalar") if gemma else head_dim) ** -0.5
    mixture = _mixture(fields, name)
    return ModelSpec(
        family=name,
        vocab=fields.integer("vocab_size"),
        d_model=width,
        num_layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        d_mlp=fields.integer(
            "moe_intermediate_size" if name == "qwen3_moe" else "intermediate_size"
        ),
        context=_context(fields, rope),
        rope=rope,
        local_rope=local_rope,
        windows=_windows(fields, name, layers),
        rope_layers=_rope_layers(fields, layers) if name == "smollm3" else (),
        mixture=mixture,
        swiglu_gain=fields.number("swiglu_alpha", 1.702),
        swiglu_limit=fields.number("swiglu_limit", 7.0),
        norm_eps=fields.number("rms_norm_eps", 1e-6),
        qkv_bias=bias,
        out_bias=bias and name != "qwen2",
        mlp_bias=name in ("llama", "smollm3", "granite") and fields.flag("mlp_bias"),
        tied=fields.flag("tie_word_embeddings"),
        embed_scale=width**0.5
        if gemma
        else fields.number("embedding_multiplier", 1.0)
        if granite
        else 1.0,
        query_scale=fields.number("attention_multiplier", 1.0) if granite else query_scale,
        residual_scale=fields.number("residual_multiplier", 1.0) if granite else 1.0,
        logit_divisor=fields.number("logits_scaling", 1.0) if granite else 1.0,
        attention_softcap=_softcap(fields, gemma, "attn_logit_softcapping"),
        logit_softcap=_softcap(fields, gemma, "final_logit_softcapping"),
        tower=tower,
        **{"activation": _activation(fields, gemma), **family.fixed},
    )


def _family(fields: Fields) -> tuple[Fields, str, bool]:
    """The fields of the text model with its family's defaults, the family, and if it is a tower."""
    name = fields.data.get("model_type")
    tower = False
    allowed: set[str] = set()
    if isinstance(name, str) and name in TOWERS:
        tower = True
        architecture, text_name = TOWERS[name]
        _check_architecture(fields, name, architecture)
        outer, fields = fields, fields.section("text_config")
        # What is beside the section holds for the whole checkpoint.
        for key in ("tie_word_embeddings", "quantization_config", "auto_map"):
            if key in outer.data:
                fields.data[key] = outer.data[key]
        name = fields.data.get("model_type", text_name)
        if name != text_name:
            raise fields.refuse("model_type", f"= {show(name)}: expected {text_name!r}")
    family = FAMILIES.get(name) if isinstance(name, str) else None
    if family is not None:
        allowed = _allowed(fields, str(name), family)
    # Before the model type, so that the message names the cause: a multimodal checkpoint, for one,
    # has a model type of its own as well.
    for key, meaning in REFUSED.items():
        if fields.data.get(key) and key not in allowed:
            raise fields.refuse(key, f"is set: this model {meaning}. Supported: {SUPPORTED}")
    if family is None:
        raise fields.refuse(
            "model_type", f"= {show(name)} is not supported. Supported: {SUPPORTED}"
        )
    if not tower:
        _check_architecture(fields, str(name), family.architecture)
    given = {k: v for k, v in fields.data.items() if v is not None or k == "sliding_window"}
    return Fields(fields.path, {**family.defaults, **given}, fields.prefix), str(name), tower


def _check_architecture(fields: Fields, name: str, architecture: str) -> None:
    declared = fields.data.get("architectures")
    if declared is not None and declared != [architecture]:
        raise fields.refuse(
            "architectures", f"= {show(declared)}: for {name} expected [{architecture!r}]"
        )


def _allowed(fields: Fields, name: str, family: Family) -> set[str]:
    """Keys that stand for a refusal elsewhere, but belong to this family."""
    allowed = set()
    if name in ("qwen3_moe", "mixtral", "olmoe", "gpt_oss"):
        allowed |= {"num_local_experts", "num_experts"}
    code = fields.data.get("auto_map")
    if isinstance(code, dict) and code and all(value in family.code for value in code.values()):
        allowed.add("auto_map")
    quantised = fields.data.get("quantization_config")
    mxfp4 = isinstance(quantised, dict) and quantised.get("quant_method") == "mxfp4"
    if name == "gpt_oss" and mxfp4:
        allowed.add("quantization_config")
    return allowed


def _context(fields: Fields, rope: Rope) -> int:
    """The longest sequence, in tokens, within which a rotation depends on the position alone."""
    context = fields.integer("max_position_embeddings", largest=1 << 30)
    if rope.kind == "longrope":
        # Beyond it all frequencies change, those of cached keys too.
        return min(context, rope.original_context)
    if rope.kind == "yarn":
        # Qwen's cards add the scaling to a config.json whose context stays the original one.
        return max(context, round(rope.factor * rope.original_context))
    return context


def _rope_layers(fields: Fields, layers: int) -> tuple[bool, ...]:
    """Which layers of SmolLM3 are rotated."""
    flags = fields.data.get("no_rope_layers")
    if flags is None:
        period = fields.integer("no_rope_layer_interval", 4)
        flags = [int((i + 1) % period != 0) for i in range(layers)]
    # In spite of the field's name, 1 means that the layer is rotated.
    if (
        not isinstance(flags, list)
        or len(flags) < layers
        or any(type(flag) not in (int, bool) or flag not in (0, 1) for flag in flags)
    ):
        raise fields.refuse("no_rope_layers", f"= {show(flags)}: expected {layers} times 0 or 1")
    rotated = tuple(bool(flag) for flag in flags[:layers])
    return () if all(rotated) else rotated


def _mixture(fields: Fields, name: str) -> Mixture | None:
    """The mixture of experts of the families that have one."""
    if name not in ("qwen3_moe", "mixtral", "olmoe", "gpt_oss"):
        return None
    key = "num_local_experts" if fields.has("num_local_experts") else "num_experts"
    experts, chosen = fields.integer(key), fields.integer("num_experts_per_tok")
    if chosen > experts:
        raise fields.refuse("num_experts_per_tok", f"= {chosen}: expected at most {experts}")
    # A published Qwen3-MoE has experts in every layer; the fields for others exist all the same.
    if fields.data.get("mlp_only_layers") or fields.integer("decoder_sparse_step", 1) != 1:
        key = "mlp_only_layers" if fields.data.get("mlp_only_layers") else "decoder_sparse_step"
        raise fields.refuse(key, "is set: layers with and without experts are not supported")
    return Mixture(
        experts,
        chosen,
        normalised=name in ("mixtral", "gpt_oss") or fields.flag("norm_topk_prob"),
        bias=name == "gpt_oss",
        layout={"mixtral": "mixtral", "gpt_oss": "interleaved"}.get(name, "separate"),
    )


def _windows(fields: Fields, name: str, layers: int) -> tuple[int | None, ...]:
    """The sliding window of each layer, or None for full attention; () where no layer has one."""
    # 1. The size: config.json's, where null means no window, or else the family's default.
    size = fields.integer("sliding_window") if fields.has("sliding_window") else None
    if name in ("llama", "granite", "olmo2", "olmoe"):
        size = None
    if (name.startswith("qwen") or name == "smollm3") and not fields.flag("use_sliding_window"):
        size = None
    # 2. The layers that have it: as listed, or else by the family's own pattern.
    kinds = fields.data.get("layer_types")
    if kinds is None:
        if name in ("mistral", "mixtral", "phi3", "qwen3_moe"):
            kinds = [SLIDING] * layers
        elif name in ("gemma2", "gpt_oss"):
            kinds = [FULL if i % 2 else SLIDING for i in range(layers)]
        elif name == "smollm3":
            rotated = _rope_layers(fields, layers) or (True,) * layers
            kinds = [FULL if rotates else SLIDING for rotates in rotated]
        elif name == "olmo3":
            kinds = [SLIDING if (i + 1) % 4 else FULL for i in range(layers)]
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


def _first_window_layer(fields: Fields) -> int:
    value = fields.data.get("max_window_layers", 28)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise fields.refuse("max_window_layers", f"= {show(value)}: expected a whole number")
    return value


def _activation(fields: Fields, gemma: bool) -> str:
    key = "hidden_activation" if gemma else "hidden_act"
    name = fields.data.get(key) or "silu"
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise fields.refuse(
            key, f"= {show(name)} is not supported. Supported: {', '.join(ACTIVATIONS)}"
        )
    return ACTIVATIONS[name]


def _softcap(fields: Fields, gemma: bool, key: str) -> float | None:
    return fields.number(key) if gemma and fields.has(key) else None
