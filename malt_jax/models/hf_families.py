"""The supported architectures: what each fixes, and what config.json may leave out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Family:
    """One `model_type` of transformers."""

    architecture: str
    sizes: str
    """Published models whose config.json is read in the tests."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Values of fields that config.json may leave out."""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `ModelSpec` that follow from the architecture alone."""
    scaled_ropes: tuple[str, ...] = ("linear", "llama3", "yarn", "dynamic")
    two_ropes: bool = False
    """Layers with a sliding window have a rope of their own."""
    partial_rotary: bool = False
    """A part of each head may be left as it is (`partial_rotary_factor`)."""
    code: tuple[str, ...] = ()
    """Names in `auto_map` that stand for what transformers and this package have built in."""


_GEMMA = {"norm_plus_one": True, "post_norms": True}
_GEMMA_DEFAULTS = {
    "tie_word_embeddings": True,
    "head_dim": 256,
    "sliding_window": 4096,
    "query_pre_attn_scalar": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "num_key_value_heads": 4,
}
_QK_ALL_HEADS = {"qk_norm": True, "qk_norm_all_heads": True}
_OLMO = {**_QK_ALL_HEADS, "norm_in_float32": True}
_OLMO_DEFAULTS = {"rms_norm_eps": 1e-5}
_POST_ONLY = {"pre_norms": False, "post_norms": True}
FAMILIES = {
    "llama": Family("LlamaForCausalLM", "Llama 2 7B, Llama 3.2 1B, SmolLM2 135M"),
    "mistral": Family(
        "MistralForCausalLM",
        "7B v0.1 and v0.3, Nemo 12B, Small 24B (2501, tower of 3.1)",
        {
            "sliding_window": 4096,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "max_position_embeddings": 131072,
        },
    ),
    "qwen2": Family(
        "Qwen2ForCausalLM",
        "Qwen2.5 0.5B, 7B and 72B",
        {"sliding_window": 4096, "num_key_value_heads": 32},
    ),
    "qwen3": Family(
        "Qwen3ForCausalLM",
        "0.6B, 1.7B, 4B, 8B, 14B, 32B, 4B-2507, DeepSeek-R1-0528 8B",
        {"head_dim": 128, "sliding_window": 4096, "num_key_value_heads": 32},
        {"qk_norm": True},
    ),
    "gemma2": Family(
        "Gemma2ForCausalLM",
        "2B, 9B and 27B",
        {**_GEMMA_DEFAULTS, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
        _GEMMA,
    ),
    "gemma3_text": Family(
        "Gemma3ForCausalLM",
        "270M, 1B; the text towers of 4B, 12B and 27B",
        {
            **_GEMMA_DEFAULTS,
            "rope_theta": 1e6,
            "vocab_size": 262208,
            "num_attention_heads": 8,
            "max_position_embeddings": 131072,
        },
        {**_GEMMA, "qk_norm": True},
        two_ropes=True,
    ),
    "smollm3": Family(
        "SmolLM3ForCausalLM",
        "3B and 3B-Base",
        {"rope_theta": 2e6, "tie_word_embeddings": True, "num_key_value_heads": 4},
    ),
    "olmo2": Family("Olmo2ForCausalLM", "1B, 7B, 13B and 32B", _OLMO_DEFAULTS, _OLMO | _POST_ONLY),
    "olmo3": Family(
        "Olmo3ForCausalLM",
        "7B and 32B",
        {**_OLMO_DEFAULTS, "rope_theta": 5e5, "sliding_window": 4096},
        _OLMO | _POST_ONLY,
        two_ropes=True,
    ),
    "phi3": Family(
        "Phi3ForCausalLM",
        "Phi-3 mini 4k and 128k, Phi-3.5 mini, Phi-3 medium 4k, Phi-4 14B, Phi-4-mini",
        {"rms_norm_eps": 1e-5, "original_max_position_embeddings": 4096},
        {"fused": True},
        ("longrope",),
        partial_rotary=True,
        code=(
            "configuration_phi3.Phi3Config",
            "modeling_phi3.Phi3ForCausalLM",
            "modeling_phi3.Phi3Model",
        ),
    ),
    "granite": Family("GraniteForCausalLM", "3.1 2B and 8B, 3.3 2B and 8B"),
    "qwen3_moe": Family(
        "Qwen3MoeForCausalLM",
        "30B-A3B and 235B-A22B",
        {"sliding_window": 4096, "num_key_value_heads": 4},
        {"qk_norm": True},
    ),
    "mixtral": Family(
        "MixtralForCausalLM",
        "8x7B and 8x22B",
        {"rope_theta": 1e6, "rms_norm_eps": 1e-5, "num_key_value_heads": 8},
    ),
    "olmoe": Family("OlmoeForCausalLM", "1B-7B (0924 and 0125)", _OLMO_DEFAULTS, _QK_ALL_HEADS),
    "gpt_oss": Family(
        "GptOssForCausalLM",
        "20B and 120B",
        {
            "rope_theta": 150000.0,
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": 32.0,
                "original_max_position_embeddings": 4096,
                "truncate": False,
            },
            "head_dim": 64,
            "num_key_value_heads": 8,
            "sliding_window": 128,
            "attention_bias": True,
            "rms_norm_eps": 1e-5,
        },
        {"norm_in_float32": True, "attention_sinks": True, "activation": "clamped_swiglu"},
    ),
}
TOWERS = {
    "gemma3": ("Gemma3ForConditionalGeneration", "gemma3_text"),
    "mistral3": ("Mistral3ForConditionalGeneration", "mistral"),
}
"""Multimodal checkpoints whose text tower is read: architecture and family of the tower."""
LIMITS = {
    "gemma3": "text only; exported as a text model",
    "mistral3": "text only; exported as a text model",
    "phi3": "long-rope: up to the original context",
    "qwen3_moe": "experts in every layer",
    "olmoe": "no clip_qkv",
    "gpt_oss": "MXFP4 is dequantised on load; adapters on experts export merged only",
}
"""What is refused within a family, or done in one way only."""
SUPPORTED = (
    "Llama 2 to 3.3, SmolLM2, SmolLM3, Mistral, Qwen2/2.5, Qwen3, Gemma 2 and 3, OLMo 2 and 3, "
    "Phi-3 and 4, Granite 3, and of mixtures Qwen3-MoE, Mixtral, OLMoE and gpt-oss"
)
ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh"}

MIXTURES = ("qwen3_moe", "mixtral", "olmoe", "gpt_oss")
EXPERTS = ("num_local_experts", "num_experts")
REFUSED = {
    "vision_config": "is multimodal",
    "audio_config": "is multimodal",
    "text_config": "is multimodal",
    **dict.fromkeys((*EXPERTS, "n_routed_experts"), "is a mixture of experts of another family"),
    "use_bidirectional_attention": "attends in both directions",
    "attention_chunk_size": "attends in chunks",
    "clip_qkv": "clips queries, keys and values",
}
"""Keys that, set to anything but null or false, mean a model that this decoder does not support."""
QUANTISED = ("quantization_config", "quantization")
"""Keys that quantised weights are declared by; the second one is MLX's."""
QUANTISED_FILES = ("hf_quant_config.json", "quantize_config.json", "quant_config.json")
"""Files beside config.json that declare them instead: of ModelOpt, AutoGPTQ and AutoAWQ."""
UNQUANTISED = "the weights are quantised; use the model's unquantised checkpoint"
