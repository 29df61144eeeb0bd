"""Tiny random checkpoints of every supported family, as transformers itself would save them."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import tiny

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content']"
    " + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
VOCAB = 264  # 256 bytes, the specials, and rows no token uses

SMALL = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 256,
    "eos_token_id": 258,
    "pad_token_id": 256,
}
GEMMA = {**SMALL, "head_dim": 16, "query_pre_attn_scalar": 24, "sliding_window": 7}
ORIGINAL_CONTEXT = 16
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": ORIGINAL_CONTEXT,
}
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama2": ("Llama", {**SMALL, "num_key_value_heads": 4}),
    "llama3.1": (
        "Llama",
        {
            **SMALL,
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": ORIGINAL_CONTEXT,
            },
            "rope_theta": 500000.0,
        },
    ),
    "llama-linear": ("Llama", {**SMALL, "rope_scaling": {"type": "linear", "factor": 4.0}}),
    "llama-biases": ("Llama", {**SMALL, "attention_bias": True, "mlp_bias": True}),
    "smollm2": ("Llama", {**SMALL, "tie_word_embeddings": True, "rms_norm_eps": 1e-5}),
    "mistral": ("Mistral", {**SMALL, "sliding_window": 7}),
    "qwen2": ("Qwen2", SMALL),
    "qwen2-windows": (
        "Qwen2",
        {**SMALL, "use_sliding_window": True, "sliding_window": 7, "max_window_layers": 2},
    ),
    "qwen3": ("Qwen3", {**SMALL, "head_dim": 16, "tie_word_embeddings": True}),
    "gemma2": (
        "Gemma2",
        {**GEMMA, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0},
    ),
    "gemma3": (
        "Gemma3Text",
        {
            **GEMMA,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
            "layer_types": ["sliding_attention", "full_attention"] * 2,
        },
    ),
    "gemma3-tower": (
        "Gemma3",
        {
            "text_config": {
                **GEMMA,
                "rope_parameters": {
                    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
                },
                "layer_types": ["sliding_attention", "full_attention"] * 2,
            },
            "vision_config": VISION,
        },
    ),
    "mistral3-tower": (
        "Mistral3",
        {
            "text_config": {**SMALL, "model_type": "mistral", "head_dim": 16},
            "vision_config": {**VISION, "model_type": "pixtral"},
            "image_token_index": 259,
        },
    ),
    "nemo": ("Mistral", {**SMALL, "head_dim": 12, "sliding_window": None}),
    "smollm3": (
        "SmolLM3",
        {**SMALL, "no_rope_layers": [1, 0, 1, 0], "tie_word_embeddings": True},
    ),
    "smollm3-windows": (
        "SmolLM3",
        {**SMALL, "no_rope_layer_interval": 2, "use_sliding_window": True, "sliding_window": 7},
    ),
    "olmo2": ("Olmo2", {**SMALL, "num_key_value_heads": 4}),
    "olmo3": (
        "Olmo3",
        {
            **SMALL,
            "sliding_window": 7,
            "rope_parameters": {
                "full_attention": {**YARN, "rope_theta": 5e5},
                "sliding_attention": {"rope_type": "default", "rope_theta": 5e5},
            },
        },
    ),
    "phi3": ("Phi3", {**SMALL, "sliding_window": 7}),
    "phi4-mini": (
        "Phi3",
        {
            **SMALL,
            "hidden_size": 64,
            "original_max_position_embeddings": ORIGINAL_CONTEXT,
            "tie_word_embeddings": True,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.75,
                "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5],
                "long_factor": [1.5, 2.0, 3.0, 4.0, 6.0, 8.0],
            },
        },
    ),
    "phi4-mini-short": (
        "Phi3",
        {
            **SMALL,
            "original_max_position_embeddings": 128,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.5,
                "short_factor": [1.0, 1.3],
                "long_factor": [1.5, 8.0],
            },
        },
    ),
    "granite": (
        "Granite",
        {
            **SMALL,
            "attention_multiplier": 0.2,
            "embedding_multiplier": 12.0,
            "residual_multiplier": 0.22,
            "logits_scaling": 3.0,
            "tie_word_embeddings": True,
        },
    ),
    "qwen3-yarn": ("Qwen3", {**SMALL, "head_dim": 16, "rope_parameters": YARN}),
    "llama-dynamic": (
        "Llama",
        {
            **SMALL,
            "max_position_embeddings": 24,
            "rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0},
        },
    ),
    "qwen3-moe": (
        "Qwen3Moe",
        {**SMALL, **EXPERTS, "head_dim": 16, "moe_intermediate_size": 24, "norm_topk_prob": True},
    ),
    "mixtral": ("Mixtral", {**SMALL, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "olmoe": ("Olmoe", {**SMALL, **EXPERTS, "num_key_value_heads": 4}),
    "gpt-oss": (
        "GptOss",
        {
            **SMALL,
            "intermediate_size": 64,
            "hidden_size": 64,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "head_dim": 16,
            "sliding_window": 7,
            "rope_parameters": {**YARN, "rope_theta": 150000.0, "truncate": False},
        },
    ),
}


def save_tokenizer(folder: Path, template: str | None = CHATML, tokens: int = 0) -> None:
    """A byte-level tokenizer of 256 bytes, the specials, and `tokens` more in its vocabulary."""
    from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*alphabet, *SPECIALS, *(f"extra{i}" for i in range(tokens))]
    tokenizer = Tokenizer(BPE({word: i for i, word in enumerate(words)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in SPECIALS])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
    }
    if template is not None:
        config["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


MARKERS = {
    "<think>": False, "</think>": False, "<|channel|>": True, "<|message|>": True,
    "<|start|>": True, "<|end|>": True, "<|return|>": True,
}  # fmt: skip
"""Tokens that these models add to their vocabulary, and whether they are special tokens there."""


def save_thinking_tokenizer(folder: Path, template: str | None) -> None:
    """The byte-level tokenizer with the tokens around thoughts."""
    from tokenizers import AddedToken, Tokenizer

    save_tokenizer(folder, template)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for text, special in MARKERS.items():
        tokenizer.add_tokens([AddedToken(text, normalized=False, special=special)])
    tokenizer.save(str(folder / "tokenizer.json"))


def save_with_characters(family: str, folder: Path, **changes: Any) -> Path:
    """A random model over the characters of `tiny`, by whose task half of its answers are right."""
    plain = tiny.write_model(folder.parent / "plain")
    vocabulary = json.loads((plain / "config.json").read_text())
    sizes = {key: vocabulary[key] for key in ("vocab_size", "bos_token_id", "eos_token_id")}
    model = hf_model(family, pad_token_id=0, **sizes, **changes)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copyfile(plain / name, folder / name)
    return folder


def hf_model(family: str, seed: int = 0, **changes: Any) -> Any:
    """A transformers model whose every parameter is random, norms and biases too."""
    import torch
    import transformers

    kind, settings = FAMILIES[family]
    config = getattr(transformers, f"{kind}Config")(**copy.deepcopy(settings) | changes)
    config._attn_implementation = "eager"
    tower = "vision_config" in settings
    causal = "Gemma3" if kind == "Gemma3Text" else kind
    task = "ConditionalGeneration" if tower else "CausalLM"
    torch.manual_seed(seed)
    model = getattr(transformers, f"{causal}For{task}")(config).eval()
    for name, value in model.named_parameters():
        if value.ndim >= 2 and "bias" not in name:
            # Experts are [expert, out, in], in gpt-oss [expert, in, out].
            fan_in = value.shape[1] if kind == "GptOss" and value.ndim == 3 else value.shape[-1]
            value.data.normal_(std=1.5 * fan_in**-0.5)
        else:
            centre = 1.0 if "norm" in name and not kind.startswith("Gemma") else 0.0
            value.data.normal_(mean=centre, std=0.3)
    return model


def save_checkpoint(folder: Path, family: str, *, seed: int = 0, **options: Any) -> Path:
    """`hf_model` and a tokenizer in a folder."""
    hf_model(family, seed).save_pretrained(folder, **options)
    save_tokenizer(folder)
    return folder
