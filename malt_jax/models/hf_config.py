"""Reads config.json of a Hugging Face checkpoint into a ModelSpec, or refuses it by field.

Both spellings are read: that of transformers 4 (`rope_theta`, `rope_scaling`,
`rope_local_base_freq`, `sliding_window_pattern`) and that of transformers 5 (`rope_parameters`,
`layer_types`). No weight is opened, and nothing from the checkpoint is executed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from malt_jax.checks import show
from malt_jax.errors import UserError
from malt_jax.models.checkpoint import stores_head
from malt_jax.models.hf_families import (
    ACTIVATIONS,
    EXPERTS,
    FAMILIES,
    MIXTURES,
    QUANTISED,
    QUANTISED_FILES,
    REFUSED,
    SUPPORTED,
    TOWERS,
    UNQUANTISED,
    Family,
)
from malt_jax.models.hf_fields import Fields, read_json
from malt_jax.models.hf_rope import FULL, SLIDING, read_ropes
from malt_jax.models.spec import Mixture, ModelSpec, Rope

NULLABLE = (
    "sliding_window",
    "num_key_value_heads",
    "attn_logit_softcapping",
    "final_logit_softcapping",
)
"""Fields where null is a value of its own, and not the family's default."""


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
        # transformers never reads this field of Gemma 3.
        attention_softcap=_softcap(fields, name == "gemma2", "attn_logit_softcapping"),
        logit_softcap=_softcap(fields, gemma, "final_logit_softcapping"),
        tower=tower,
        **{"activation": _activation(fields, gemma), **family.fixed},
    )


def _family(fields: Fields) -> tuple[Fields, str, bool]:
    """The fields of the text model with its family's defaults, the family, and if it is a tower."""
    name = fields.data.get("model_type")
    tower = False
    beside: tuple[Fields, ...] = ()
    if isinstance(name, str) and name in TOWERS:
        tower = True
        architecture, text_name = TOWERS[name]
        _check_architecture(fields, name, architecture)
        outer, fields = fields, fields.section("text_config")
        # transformers 5 writes true beside the section of an untied model as well: the default of
        # its outer class, to which it does not keep if the file has a head.
        untied = fields.data.get("tie_word_embeddings") is False and stores_head(fields.path.parent)
        # What is beside the section holds for the whole checkpoint.
        if outer.has("tie_word_embeddings") and not untied:
            fields.data["tie_word_embeddings"] = outer.data["tie_word_embeddings"]
        beside = (outer,)
        found = fields.data.get("model_type", text_name)
        if found != text_name:
            raise fields.refuse(
                "model_type", f"= {show(found)}: of a {name} checkpoint, {text_name!r} is supported"
            )
        name = found
    if not isinstance(name, str) or name not in FAMILIES:
        # A reason alone would suggest that another file of the same model can be read.
        why = next((f": this model {REFUSED[key]}" for key in REFUSED if fields.data.get(key)), "")
        raise fields.refuse(
            "model_type", f"= {show(name)} is not supported{why}. Supported: {SUPPORTED}"
        )
    family = FAMILIES[name]
    for one in (*beside, fields):
        _check_quantisation(one, name)
        if one.data.get("auto_map") and not _known_code(one.data["auto_map"], family):
            raise one.refuse(
                "auto_map",
                "asks for code shipped with the checkpoint, which is never run; remove it there if "
                f"the weights are those of transformers' own {family.architecture}",
            )
    for key, meaning in REFUSED.items():
        if fields.data.get(key) and not (key in EXPERTS and name in MIXTURES):
            raise fields.refuse(key, f"is set: this model {meaning}. Supported: {SUPPORTED}")
    if not tower:
        _check_architecture(fields, name, family.architecture)
    given = {k: v for k, v in fields.data.items() if v is not None or k in NULLABLE}
    if given.get("rope_scaling") == {}:  # says as little as null
        del given["rope_scaling"]
    return Fields(fields.path, {**family.defaults, **given}, fields.prefix), name, tower


def _check_architecture(fields: Fields, name: str, architecture: str) -> None:
    declared = fields.data.get("architectures")
    if declared is not None and declared != [architecture]:
        raise fields.refuse(
            "architectures", f"= {show(declared)}: for {name} expected [{architecture!r}]"
        )


def _check_quantisation(fields: Fields, name: str) -> None:
    """Refuses quantised weights, whichever file of the folder speaks of them."""
    for key in QUANTISED:
        if found := fields.data.get(key):
            method = found.get("quant_method") if isinstance(found, dict) else None
            if name == "gpt_oss" and method == "mxfp4":
                continue
            finding = "is set" if method is None else f"has quant_method {show(method)}"
            raise fields.refuse(key, f"{finding}: {UNQUANTISED}")
    for file in QUANTISED_FILES:
        if (fields.path.parent / file).is_file():
            raise UserError(f"{fields.path.parent / file}: {UNQUANTISED}.")


def _known_code(code: Any, family: Family) -> bool:
    """Whether `auto_map` names nothing but classes that transformers has built in as well."""
    if not isinstance(code, dict):
        return False
    # A fine-tuned model names the repository of its code in front: `owner/name--module.Class`. The
    # tokenizer's class does not matter, because the tokenizer is what its files say.
    classes = [value for key, value in code.items() if key != "AutoTokenizer"]
    return all(
        isinstance(value, str) and value.rpartition("--")[2] in family.code for value in classes
    )


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
    if name not in MIXTURES:
        return None
    own = "num_local_experts" if name in ("mixtral", "gpt_oss") else "num_experts"
    key = next((key for key in (own, *EXPERTS) if fields.has(key)), own)
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
    needs_size = kinds is not None or name in ("gemma2", "gemma3_text", "olmo3", "gpt_oss")
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
    if needs_size and size is None and SLIDING in kinds:
        raise fields.refuse("sliding_window", "is not set, but layers have sliding windows")
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


def _softcap(fields: Fields, capped: bool, key: str) -> float | None:
    return fields.number(key) if capped and fields.has(key) else None
