"""The fields of published config.json files that describe the decoder (transformers 4 spelling).

Written down from memory of the files on the hub; fields about training and files are left out.
Compared with copies of the published files, and equal to them in all that is read: Qwen3 0.6B to
235B, Mixtral and gpt-oss (model_configs of ai-dynamo/aiconfigurator), Granite 3.3 8B, OLMo 3's rope
and Phi-4-mini. From such copies, as transformers 4.50 to 4.57 wrote them: Gemma 3 270M, Mistral
Small 3.1, DeepSeek-R1-0528-Qwen3-8B, and what a fine-tuned Phi-3.5 says of its code.
"""

from __future__ import annotations

from typing import Any


def _of(architecture: str, model_type: str, **fields: Any) -> dict[str, Any]:
    return {"architectures": [architecture], "model_type": model_type, "torch_dtype": "bfloat16",
            **fields}  # fmt: skip


def _sized(hidden: int, mlp: int, layers: int, heads: int, kv: int, vocab: int) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "vocab_size": vocab,
    }


def _qwen3(*size: int, tied: bool = False, context: int = 40960, theta: float = 1000000):
    return _of("Qwen3ForCausalLM", "qwen3", **_sized(*size, 151936), head_dim=128,
               attention_bias=False, hidden_act="silu", max_position_embeddings=context,
               max_window_layers=size[2], rms_norm_eps=1e-6, rope_scaling=None, rope_theta=theta,
               sliding_window=None, tie_word_embeddings=tied, use_sliding_window=False)  # fmt: skip


def _qwen3_moe(*size: int, inner: int, layers: int):
    return _of(
        "Qwen3MoeForCausalLM",
        "qwen3_moe",
        **_sized(*size, 151936),
        head_dim=128,
        attention_bias=False,
        decoder_sparse_step=1,
        hidden_act="silu",
        max_position_embeddings=40960,
        max_window_layers=layers,
        mlp_only_layers=[],
        moe_intermediate_size=inner,
        norm_topk_prob=True,
        num_experts=128,
        num_experts_per_tok=8,
        rms_norm_eps=1e-6,
        rope_scaling=None,
        rope_theta=1000000.0,
        sliding_window=None,
        tie_word_embeddings=False,
        use_sliding_window=False,
    )


def _qwen25(*size: int, vocab: int = 152064, tied: bool = False):
    return _of("Qwen2ForCausalLM", "qwen2", **_sized(*size, vocab), hidden_act="silu",
               max_position_embeddings=32768, max_window_layers=28, rms_norm_eps=1e-6,
               rope_theta=1000000.0, sliding_window=131072, tie_word_embeddings=tied,
               use_sliding_window=False)  # fmt: skip


def _mistral(*size: int, vocab: int, context: int, theta: float):
    return _of("MistralForCausalLM", "mistral", **_sized(*size, vocab), head_dim=128,
               hidden_act="silu", max_position_embeddings=context, rms_norm_eps=1e-5,
               rope_theta=theta, sliding_window=None, tie_word_embeddings=False)  # fmt: skip


def _gemma2(*size: int, head_dim: int, scalar: int):
    return _of("Gemma2ForCausalLM", "gemma2", **_sized(*size, 256000), head_dim=head_dim,
               attn_logit_softcapping=50.0, final_logit_softcapping=30.0,
               hidden_activation="gelu_pytorch_tanh", max_position_embeddings=8192,
               query_pre_attn_scalar=scalar, rms_norm_eps=1e-6, rope_theta=10000.0,
               sliding_window=4096)  # fmt: skip


def _gemma3(**text: Any):
    """A multimodal checkpoint, whose text section leaves out what is a default."""
    scaling = {"factor": 8.0, "rope_type": "linear"}
    text = {"model_type": "gemma3_text", "rope_scaling": scaling, "sliding_window": 1024, **text}
    vision = {"model_type": "siglip_vision_model", "hidden_size": 1152, "image_size": 896,
              "intermediate_size": 4304, "num_attention_heads": 16, "num_hidden_layers": 27,
              "patch_size": 14}  # fmt: skip
    return _of("Gemma3ForConditionalGeneration", "gemma3", text_config=text, vision_config=vision,
               mm_tokens_per_image=256)  # fmt: skip


def _smollm3(context: int, theta: float):
    return _of("SmolLM3ForCausalLM", "smollm3", **_sized(2048, 11008, 36, 16, 4, 128256),
               attention_bias=False, hidden_act="silu", max_position_embeddings=context,
               max_window_layers=28, mlp_bias=False, no_rope_layer_interval=4,
               no_rope_layers=[1, 1, 1, 0] * 9, layer_types=["full_attention"] * 36,
               rms_norm_eps=1e-6, rope_scaling=None, rope_theta=theta, sliding_window=None,
               tie_word_embeddings=True, use_sliding_window=False)  # fmt: skip


def _olmo2(*size: int):
    return _of("Olmo2ForCausalLM", "olmo2", **_sized(*size, 100352), attention_bias=False,
               hidden_act="silu", max_position_embeddings=4096, rms_norm_eps=1e-6,
               rope_scaling=None, rope_theta=500000, tie_word_embeddings=False)  # fmt: skip


def _olmo3(*size: int):
    scaling = {
        "rope_type": "yarn",
        "factor": 8.0,
        "original_max_position_embeddings": 8192,
        "attention_factor": 1.2079441541679836,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
    }
    kinds = (["sliding_attention"] * 3 + ["full_attention"]) * (size[2] // 4)
    return _of("Olmo3ForCausalLM", "olmo3", **_sized(*size, 100278), attention_bias=False,
               hidden_act="silu", layer_types=kinds, max_position_embeddings=65536,
               rms_norm_eps=1e-6, rope_scaling=scaling, rope_theta=500000, sliding_window=4096,
               tie_word_embeddings=False)  # fmt: skip


def _phi(*size: int, context: int = 4096, theta: float = 10000.0, origin: str = "", **fields: Any):
    code = {"AutoConfig": f"{origin}configuration_phi3.Phi3Config",
            "AutoModelForCausalLM": f"{origin}modeling_phi3.Phi3ForCausalLM"}  # fmt: skip
    return _of("Phi3ForCausalLM", "phi3", **_sized(*size), auto_map=code, attention_bias=False,
               hidden_act="silu", max_position_embeddings=context, rms_norm_eps=1e-5,
               rope_theta=theta, **{"original_max_position_embeddings": 4096, "rope_scaling": None,
                                    "tie_word_embeddings": False, **fields})  # fmt: skip


def _long(pairs: int) -> dict[str, Any]:
    # The published factors are 48 numbers that rise like these.
    return {"type": "longrope", "short_factor": [1.0 + i / 100 for i in range(pairs)],
            "long_factor": [1.0 + i for i in range(pairs)]}  # fmt: skip


def _granite(*size: int, query: float, logits: float, theta: float, context: int = 131072):
    return _of("GraniteForCausalLM", "granite", **_sized(*size), attention_bias=False,
               attention_multiplier=query, embedding_multiplier=12.0, hidden_act="silu",
               logits_scaling=logits, max_position_embeddings=context, mlp_bias=False,
               residual_multiplier=0.22, rms_norm_eps=1e-5, rope_scaling=None, rope_theta=theta,
               tie_word_embeddings=True)  # fmt: skip


def _mixtral(*size: int, vocab: int, context: int):
    return _of("MixtralForCausalLM", "mixtral", **_sized(*size, vocab), hidden_act="silu",
               max_position_embeddings=context, num_experts_per_tok=2, num_local_experts=8,
               rms_norm_eps=1e-5, rope_theta=1000000.0, sliding_window=None,
               tie_word_embeddings=False)  # fmt: skip


def _olmoe(norm_topk: bool):
    return _of("OlmoeForCausalLM", "olmoe", **_sized(2048, 1024, 16, 16, 16, 50304),
               attention_bias=False, clip_qkv=None, hidden_act="silu",
               max_position_embeddings=4096, norm_topk_prob=norm_topk, num_experts=64,
               num_experts_per_tok=8, rms_norm_eps=1e-5, rope_scaling=None, rope_theta=10000.0,
               tie_word_embeddings=False)  # fmt: skip


def _gpt_oss(layers: int, experts: int):
    scaling = {"beta_fast": 32.0, "beta_slow": 1.0, "factor": 32.0, "rope_type": "yarn",
               "original_max_position_embeddings": 4096, "truncate": False}  # fmt: skip
    quantised = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    return _of("GptOssForCausalLM", "gpt_oss", **_sized(2880, 2880, layers, 64, 8, 201088),
               attention_bias=True, head_dim=64, hidden_act="silu", initial_context_length=4096,
               experts_per_token=4, layer_types=["sliding_attention", "full_attention"]
               * (layers // 2), max_position_embeddings=131072, num_experts_per_tok=4,
               num_local_experts=experts, quantization_config=quantised, rms_norm_eps=1e-5,
               rope_scaling=scaling, rope_theta=150000, sliding_window=128, swiglu_limit=7.0,
               tie_word_embeddings=False)  # fmt: skip


CONFIGS: dict[str, dict[str, Any]] = {
    "Qwen2.5-7B": _qwen25(3584, 18944, 28, 28, 4),
    "Qwen2.5-72B": _qwen25(8192, 29568, 80, 64, 8),
    "Qwen3-1.7B": _qwen3(2048, 6144, 28, 16, 8, tied=True),
    "Qwen3-4B": _qwen3(2560, 9728, 36, 32, 8, tied=True),
    "Qwen3-4B-Instruct-2507": _qwen3(2560, 9728, 36, 32, 8, tied=True, context=262144,
                                     theta=5000000),
    "Qwen3-8B": _qwen3(4096, 12288, 36, 32, 8),
    "DeepSeek-R1-0528-Qwen3-8B": {
        **_qwen3(4096, 12288, 36, 32, 8, context=131072),
        # `attn_factor` is what vLLM multiplies in; transformers does not read it.
        "rope_scaling": {"attn_factor": 0.8782488562869419, "factor": 4.0, "rope_type": "yarn",
                         "original_max_position_embeddings": 32768},
    },
    "Qwen3-14B": _qwen3(5120, 17408, 40, 40, 8),
    "Qwen3-32B": _qwen3(5120, 25600, 64, 64, 8),
    "Qwen3-30B-A3B": _qwen3_moe(2048, 6144, 48, 32, 4, inner=768, layers=48),
    "Qwen3-235B-A22B": _qwen3_moe(4096, 12288, 94, 64, 4, inner=1536, layers=94),
    "Mistral-Nemo-2407": _mistral(5120, 14336, 40, 32, 8, vocab=131072, context=131072,
                                  theta=1000000.0),
    "Mistral-Small-24B-2501": _mistral(5120, 32768, 40, 32, 8, vocab=131072, context=32768,
                                       theta=100000000.0),
    "Mistral-Small-3.1-24B": _of(
        "Mistral3ForConditionalGeneration", "mistral3", image_token_index=10,
        multimodal_projector_bias=False, projector_hidden_act="gelu", spatial_merge_size=2,
        text_config={"model_type": "mistral", **_sized(5120, 32768, 40, 32, 8, 131072),
                     "head_dim": 128, "hidden_act": "silu", "max_position_embeddings": 131072,
                     "rms_norm_eps": 1e-5, "rope_theta": 1000000000.0, "sliding_window": None},
        vision_config={"model_type": "pixtral", "head_dim": 64, "hidden_size": 1024,
                       "image_size": 1540, "intermediate_size": 4096, "num_attention_heads": 16,
                       "num_hidden_layers": 24, "patch_size": 14, "rope_theta": 10000.0},
        vision_feature_layer=-1),
    "gemma-2-9b": _gemma2(3584, 14336, 42, 16, 8, head_dim=256, scalar=256),
    "gemma-2-27b": _gemma2(4608, 36864, 46, 32, 16, head_dim=128, scalar=144),
    "gemma-3-270m": _of(
        "Gemma3ForCausalLM", "gemma3_text", **_sized(640, 2048, 18, 4, 1, 262144),
        _sliding_window_pattern=6, attn_logit_softcapping=None, final_logit_softcapping=None,
        head_dim=256, hidden_activation="gelu_pytorch_tanh", attention_bias=False,
        layer_types=(["sliding_attention"] * 5 + ["full_attention"]) * 3,
        max_position_embeddings=32768, query_pre_attn_scalar=256, rms_norm_eps=1e-6,
        rope_local_base_freq=10000.0, rope_scaling=None, rope_theta=1000000.0, sliding_window=512,
        use_bidirectional_attention=False),
    "gemma-3-4b": _gemma3(hidden_size=2560, intermediate_size=10240, num_hidden_layers=34),
    "gemma-3-12b": _gemma3(hidden_size=3840, intermediate_size=15360, num_hidden_layers=48,
                           num_attention_heads=16, num_key_value_heads=8),
    "gemma-3-27b": _gemma3(hidden_size=5376, intermediate_size=21504, num_hidden_layers=62,
                           num_attention_heads=32, num_key_value_heads=16, head_dim=128,
                           query_pre_attn_scalar=168),
    "SmolLM3-3B": _smollm3(65536, 5000000.0),
    "SmolLM3-3B-Base": _smollm3(65536, 5000000.0),
    "OLMo-2-0425-1B": _olmo2(2048, 8192, 16, 16, 16),
    "OLMo-2-1124-7B": _olmo2(4096, 11008, 32, 32, 32),
    "OLMo-2-1124-13B": _olmo2(5120, 13824, 40, 40, 40),
    "OLMo-2-0325-32B": _olmo2(5120, 27648, 64, 40, 8),
    "Olmo-3-7B": _olmo3(4096, 11008, 32, 32, 32),
    "Olmo-3-32B": _olmo3(5120, 27648, 64, 40, 8),
    "Phi-3-mini-4k": _phi(3072, 8192, 32, 32, 32, 32064, sliding_window=2047),
    "Phi-3-mini-128k": _phi(3072, 8192, 32, 32, 32, 32064, context=131072, rope_scaling=_long(48),
                            sliding_window=262144),
    "Phi-3.5-mini-tuned": _phi(3072, 8192, 32, 32, 32, 32064, context=131072,
                               rope_scaling=_long(48), sliding_window=262144,
                               origin="microsoft/Phi-3.5-mini-instruct--"),
    "Phi-3-medium-4k": _phi(5120, 17920, 40, 40, 10, 32064, sliding_window=2047),
    "phi-4": _phi(5120, 17920, 40, 40, 10, 100352, context=16384, theta=250000,
                  original_max_position_embeddings=16384, sliding_window=None),
    "Phi-4-mini": _phi(3072, 8192, 32, 24, 8, 200064, context=131072, rope_scaling=_long(48),
                       partial_rotary_factor=0.75, sliding_window=262144,
                       tie_word_embeddings=True, lm_head_bias=False, mlp_bias=False),
    "granite-3.1-2b": _granite(2048, 8192, 40, 32, 8, 49155, query=0.015625, logits=8.0,
                               theta=5000000.0),
    "granite-3.1-8b": _granite(4096, 12800, 40, 32, 8, 49155, query=0.0078125, logits=16.0,
                               theta=10000000.0),
    "granite-3.3-2b": _granite(2048, 8192, 40, 32, 8, 49159, query=0.015625, logits=8.0,
                               theta=10000000.0),
    "granite-3.3-8b": _granite(4096, 12800, 40, 32, 8, 49159, query=0.0078125, logits=16.0,
                               theta=10000000.0),
    "Mixtral-8x7B": _mixtral(4096, 14336, 32, 32, 8, vocab=32000, context=32768),
    "Mixtral-8x22B": _mixtral(6144, 16384, 56, 48, 8, vocab=32000, context=65536),
    "OLMoE-1B-7B-0924": _olmoe(False),
    "OLMoE-1B-7B-0125": _olmoe(False),
    "gpt-oss-20b": _gpt_oss(24, 32),
    "gpt-oss-120b": _gpt_oss(36, 128),
}  # fmt: skip
CONFIGS["Phi-4-mini"]["auto_map"]["AutoTokenizer"] = "Xenova/gpt-4o"
