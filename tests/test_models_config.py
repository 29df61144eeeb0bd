"""config.json as published (transformers 4) and as transformers 5 rewrites it: one ModelSpec."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import jax
import pytest

from malt_jax.errors import UserError
from malt_jax.models.hf_config import read_spec
from malt_jax.models.spec import Rope
from malt_jax.models.weights import abstract_params
from published_configs import CONFIGS

LLAMA3_SCALING = {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                  "original_max_position_embeddings": 8192, "rope_type": "llama3"}  # fmt: skip
COMMON = {"attention_bias": False, "attention_dropout": 0.0, "torch_dtype": "bfloat16"}
PUBLISHED = {
    "Llama-2-7b": {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "hidden_size": 4096, "intermediate_size": 11008, "max_position_embeddings": 4096,
        "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32,
        "pretraining_tp": 1, "rms_norm_eps": 1e-5, "rope_scaling": None, "vocab_size": 32000,
        "tie_word_embeddings": False,
    },
    "Llama-3.2-1B": COMMON | {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "head_dim": 64,
        "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 8192,
        "max_position_embeddings": 131072, "mlp_bias": False, "num_attention_heads": 32,
        "num_hidden_layers": 16, "num_key_value_heads": 8, "rms_norm_eps": 1e-5,
        "rope_scaling": LLAMA3_SCALING, "rope_theta": 500000.0, "tie_word_embeddings": True,
        "vocab_size": 128256,
    },
    "Mistral-7B-v0.1": {
        "architectures": ["MistralForCausalLM"], "model_type": "mistral", "hidden_act": "silu",
        "hidden_size": 4096, "intermediate_size": 14336, "max_position_embeddings": 32768,
        "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "sliding_window": 4096,
        "tie_word_embeddings": False, "vocab_size": 32000,
    },
    "Mistral-7B-v0.3": {
        "architectures": ["MistralForCausalLM"], "model_type": "mistral", "hidden_act": "silu",
        "hidden_size": 4096, "intermediate_size": 14336, "max_position_embeddings": 32768,
        "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5, "rope_theta": 1000000.0, "sliding_window": None,
        "tie_word_embeddings": False, "vocab_size": 32768,
    },
    "Qwen2.5-0.5B": {
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_act": "silu",
        "hidden_size": 896, "intermediate_size": 4864, "max_position_embeddings": 32768,
        "max_window_layers": 24, "num_attention_heads": 14, "num_hidden_layers": 24,
        "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0,
        "sliding_window": 32768, "tie_word_embeddings": True, "use_sliding_window": False,
        "vocab_size": 151936,
    },
    "Qwen3-0.6B": COMMON | {
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 128,
        "hidden_act": "silu", "hidden_size": 1024, "intermediate_size": 3072,
        "max_position_embeddings": 40960, "max_window_layers": 28, "num_attention_heads": 16,
        "num_hidden_layers": 28, "num_key_value_heads": 8, "rms_norm_eps": 1e-6,
        "rope_scaling": None, "rope_theta": 1000000, "sliding_window": None,
        "tie_word_embeddings": True, "use_sliding_window": False, "vocab_size": 151936,
    },
    "gemma-2-2b": COMMON | {
        "architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2",
        "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "head_dim": 256,
        "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 2304, "intermediate_size": 9216, "max_position_embeddings": 8192,
        "num_attention_heads": 8, "num_hidden_layers": 26, "num_key_value_heads": 4,
        "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
        "sliding_window": 4096, "vocab_size": 256000,
    },
    "gemma-3-1b": COMMON | {
        "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text",
        "attn_logit_softcapping": None, "final_logit_softcapping": None, "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 1152, "intermediate_size": 6912,
        "max_position_embeddings": 32768, "num_attention_heads": 4, "num_hidden_layers": 26,
        "num_key_value_heads": 1, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-6,
        "rope_local_base_freq": 10000, "rope_scaling": None, "rope_theta": 1000000,
        "sliding_window": 512, "sliding_window_pattern": 6, "vocab_size": 262144,
    },
    **CONFIGS,
}  # fmt: skip


PARAMETERS = {
    "gemma-3-270m": 0.268, "Mistral-Small-3.1-24B": 23.6,
    "Qwen3-1.7B": 1.72, "Qwen3-4B": 4.02, "Qwen3-8B": 8.19, "Qwen3-14B": 14.8, "Qwen3-32B": 32.8,
    "Qwen3-30B-A3B": 30.5, "Qwen3-235B-A22B": 235.1, "Mistral-Nemo-2407": 12.2,
    "Mistral-Small-24B-2501": 23.6, "gemma-2-9b": 9.24, "gemma-2-27b": 27.2, "gemma-3-4b": 3.88,
    "gemma-3-12b": 11.8, "gemma-3-27b": 27.0, "SmolLM3-3B": 3.08, "OLMo-2-0425-1B": 1.48,
    "OLMo-2-1124-7B": 7.3, "OLMo-2-1124-13B": 13.7, "OLMo-2-0325-32B": 32.2, "Olmo-3-7B": 7.3,
    "Phi-3-mini-4k": 3.82, "Phi-3-medium-4k": 13.96, "phi-4": 14.66, "Phi-4-mini": 3.84,
    "granite-3.1-8b": 8.17, "granite-3.1-2b": 2.53, "Mixtral-8x7B": 46.7, "Mixtral-8x22B": 140.6,
    "OLMoE-1B-7B-0924": 6.92, "gpt-oss-20b": 20.9, "gpt-oss-120b": 116.8,
}  # fmt: skip
"""Billions of parameters that the models' cards state (of towers: without the image tower)."""


def spec_of(folder: Path, config: dict):
    (folder / "config.json").write_text(json.dumps(config))
    return read_spec(folder)


@pytest.mark.parametrize("name", PUBLISHED)
def test_both_spellings_give_one_spec(name, tmp_path):
    from transformers import AutoConfig

    published = spec_of(tmp_path, PUBLISHED[name])
    # What is written down from memory is checked against the size that the model's name states.
    if name in PARAMETERS:
        _, params = abstract_params(published, "float32", stacked=True)
        size = sum(leaf.size for leaf in jax.tree.leaves(params)) / 1e9
        assert size == pytest.approx(PARAMETERS[name], rel=0.01)
    AutoConfig.from_pretrained(tmp_path).save_pretrained(tmp_path / "rewritten")
    assert "rope_parameters" in (tmp_path / "rewritten" / "config.json").read_text()
    assert read_spec(tmp_path / "rewritten") == published


def test_what_the_families_are_told_apart_by(tmp_path):
    specs = {name: spec_of(tmp_path, config) for name, config in PUBLISHED.items()}
    assert specs["Llama-3.2-1B"].rope == Rope(500000.0, "llama3", 32.0, 1.0, 4.0, 8192)
    assert specs["Mistral-7B-v0.1"].windows == (4096,) * 32
    assert not specs["Mistral-7B-v0.3"].has_windows and not specs["Qwen2.5-0.5B"].has_windows
    qwen = specs["Qwen2.5-0.5B"]
    assert (qwen.qkv_bias, qwen.out_bias, qwen.tied) == (True, False, True)
    assert specs["Qwen3-0.6B"].qk_norm and specs["Qwen3-0.6B"].head_dim == 128
    assert specs["gemma-2-2b"].windows == (4096, None) * 13
    assert (specs["gemma-2-2b"].attention_softcap, specs["gemma-2-2b"].logit_softcap) == (50, 30)
    gemma = specs["gemma-3-1b"]
    assert gemma.windows == ((512,) * 5 + (None,)) * 4 + (512, 512)
    assert (gemma.rope.theta, gemma.local_rope) == (1e6, Rope(1e4))
    assert gemma.tied and gemma.embed_scale == 1152**0.5 and gemma.query_scale == 256**-0.5


def test_fields_that_are_left_out_are_those_of_transformers(tmp_path):
    mixtral = {k: v for k, v in CONFIGS["Mixtral-8x7B"].items() if k != "rms_norm_eps"}
    assert spec_of(tmp_path, mixtral).norm_eps == 1e-5
    phi = dict(CONFIGS["Phi-4-mini"])
    assert phi.pop("original_max_position_embeddings") == 4096
    assert spec_of(tmp_path, phi).rope.original_context == 4096
    oss = CONFIGS["gpt-oss-20b"]
    assert spec_of(tmp_path, oss).swiglu_gain == 1.702
    assert spec_of(tmp_path, oss | {"swiglu_alpha": 1.5}).swiglu_gain == 1.5


def read(folder: Path, config: dict):
    try:
        return spec_of(folder, config)
    except UserError as error:
        return str(error)


@pytest.mark.parametrize(
    "name", {config["model_type"]: name for name, config in reversed(PUBLISHED.items())}.values()
)
def test_a_field_that_is_left_out_has_the_value_that_transformers_gives_it(name, tmp_path):
    from transformers import CONFIG_MAPPING

    config = PUBLISHED[name]
    kind, tower = CONFIG_MAPPING[config["model_type"]], "text_config" in config
    for key in config["text_config"] if tower else config:
        less = copy.deepcopy(config)
        del (less["text_config"] if tower else less)[key]
        found = read(tmp_path, less)
        # Sizes that a file must state are refused by name, whatever transformers takes them for.
        if f"{key} is missing" in str(found) or key == "model_type":
            continue
        whole = kind.from_dict(copy.deepcopy(less)).to_dict()
        whole["architectures"] = less.get("architectures")
        assert found == read(tmp_path, whole), key


@pytest.mark.parametrize("head", [True, False])
def test_a_tower_that_transformers_5_calls_tied_is_untied_if_the_file_has_a_head(head, tmp_path):
    config = copy.deepcopy(CONFIGS["Mistral-Small-3.1-24B"])
    config["tie_word_embeddings"], config["text_config"]["tie_word_embeddings"] = True, False
    names = [
        "language_model.model.norm.weight",
        *(["language_model.lm_head.weight"] if head else []),
    ]
    index = {"weight_map": dict.fromkeys(names, "model-00001-of-00010.safetensors")}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert spec_of(tmp_path, config).tied != head


def test_what_the_newer_families_are_told_apart_by(tmp_path):
    specs = {name: spec_of(tmp_path, config) for name, config in CONFIGS.items()}
    smollm = specs["SmolLM3-3B"]
    assert smollm.rope_layers == (True, True, True, False) * 9 and not smollm.has_windows
    olmo = specs["Olmo-3-7B"]
    assert (olmo.pre_norms, olmo.post_norms, olmo.qk_norm_all_heads) == (False, True, True)
    assert olmo.windows == ((4096,) * 3 + (None,)) * 8 and olmo.local_rope == Rope(500000.0)
    assert (olmo.rope.kind, olmo.rope.factor) == ("yarn", 8.0)
    assert specs["Phi-3-mini-4k"].windows == (2047,) * 32 and specs["Phi-3-mini-4k"].fused
    phi = specs["Phi-4-mini"]
    assert (phi.rope.kind, phi.rope.rotary_share, phi.context) == ("longrope", 0.75, 4096)
    assert phi.rope.magnitude == pytest.approx(1.190238)
    assert specs["phi-4"].context == 16384
    granite = specs["granite-3.1-8b"]
    assert (granite.query_scale, granite.embed_scale) == (0.0078125, 12.0)
    assert (granite.residual_scale, granite.logit_divisor) == (0.22, 16.0)
    gemma = specs["gemma-3-27b"]
    assert gemma.tower and gemma.vocab == 262208 and gemma.query_scale == 168**-0.5
    assert gemma.rope == Rope(1e6, "linear", 8.0) and gemma.windows[:6] == (1024,) * 5 + (None,)
    assert specs["Mistral-Nemo-2407"].head_dim == 128  # 5120 channels would make 160
    moe = specs["Qwen3-30B-A3B"]
    assert (moe.mixture.experts, moe.mixture.chosen, moe.d_mlp) == (128, 8, 768)
    assert moe.mixture.normalised and specs["Mixtral-8x7B"].mixture.normalised
    assert not specs["OLMoE-1B-7B-0924"].mixture.normalised
    oss = specs["gpt-oss-20b"]
    assert oss.attention_sinks and oss.mixture.bias and oss.windows == (128, None) * 12
    assert not oss.rope.truncate and oss.rope.original_context == 4096


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("Qwen3-8B", {"rope_type": "default", "rope_theta": 1e6}),
        ("gemma-3-1b", {
            "full_attention": {"rope_type": "default", "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        }),
    ],
)  # fmt: skip
def test_two_descriptions_of_one_rope_are_refused_unless_they_agree(name, parameters, tmp_path):
    scaling = {"type": "linear", "factor": 8.0}
    both = PUBLISHED[name] | {"rope_parameters": parameters, "rope_scaling": scaling}
    with pytest.raises(UserError, match="rope_scaling says something else than rope_parameters"):
        spec_of(tmp_path, both)
    plain = spec_of(tmp_path, both | {"rope_scaling": None})
    assert plain.rope.kind == "default" or plain.rope.kind is None
    # An empty one says nothing.
    empty = both | {"rope_parameters": {}}
    assert spec_of(tmp_path, empty).rope.kind == "linear"


def test_two_descriptions_that_agree_are_one(tmp_path):
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    both = {"rope_parameters": {**scaling, "rope_theta": 1e6}, "rope_scaling": scaling}
    assert spec_of(tmp_path, CONFIGS["Qwen3-8B"] | both).rope.kind == "yarn"


@pytest.mark.parametrize("name", ["Llama-3.2-1B", "Qwen3-8B"])
def test_a_family_that_turns_whole_heads_refuses_a_part_of_them(name, tmp_path):
    with pytest.raises(UserError, match=r"partial_rotary_factor = 0\.5 is not supported"):
        spec_of(tmp_path, PUBLISHED[name] | {"partial_rotary_factor": 0.5})
    assert spec_of(tmp_path, PUBLISHED[name] | {"partial_rotary_factor": 1.0})


def test_qwen3_with_yarn_as_its_card_says_is_read_with_the_longer_context(tmp_path):
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    spec = spec_of(tmp_path, CONFIGS["Qwen3-8B"] | {"rope_scaling": scaling})
    assert (spec.rope.kind, spec.context) == ("yarn", 131072)
    assert spec.rope.magnitude == pytest.approx(1.1386294)
