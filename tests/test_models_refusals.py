"""Checkpoints from strangers: what is wrong or not supported is refused by name, exit status 2.

No torch: the checkpoints are written by hand.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from malt_jax.errors import UserError
from malt_jax.models.checkpoint import Checkpoint
from malt_jax.models.hf_config import read_spec
from malt_jax.models.hf_families import FAMILIES, TOWERS
from malt_jax.models.model import load_model
from tiny_models import VOCAB, save_tokenizer

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": VOCAB,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}


def tensors(layers: int = 2) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {
        "model.embed_tokens.weight": (VOCAB, 8),
        "model.norm.weight": (8,),
        "lm_head.weight": (VOCAB, 8),
    }
    for i in range(layers):
        inner = {
            "input_layernorm": (8,),
            "post_attention_layernorm": (8,),
            "self_attn.q_proj": (8, 8),
            "self_attn.k_proj": (4, 8),
            "self_attn.v_proj": (4, 8),
            "self_attn.o_proj": (8, 8),
            "mlp.gate_proj": (12, 8),
            "mlp.up_proj": (12, 8),
            "mlp.down_proj": (8, 12),
        }
        shapes |= {f"model.layers.{i}.{name}.weight": shape for name, shape in inner.items()}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def checkpoint(folder: Path, *, config: dict | None = None, weights: dict | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | (config or {})))
    save_file(tensors() if weights is None else weights, folder / "model.safetensors")
    save_tokenizer(folder)
    return folder


def refused(folder: Path, *parts: str) -> None:
    """Loading fails with one sentence that names each part."""
    with pytest.raises(UserError) as caught:
        load_model(folder)
    for part in parts:
        assert part in str(caught.value), str(caught.value)


GOOD_ROPE = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
             "high_freq_factor": 4.0, "original_max_position_embeddings": 32}  # fmt: skip
MOE = {"architectures": None, "num_experts": 4, "num_experts_per_tok": 2}
BAD_CONFIGS = {
    "another architecture": ({"model_type": "gpt2"}, "gpt2"),
    "no architecture": ({"model_type": None}, "model_type"),
    "a list for a name": ({"model_type": ["llama"]}, "model_type"),
    "a classifier": ({"architectures": ["LlamaForSequenceClassification"]}, "architectures"),
    "deepseek": ({"model_type": "deepseek_v3", "n_routed_experts": 8}, "mixture of experts"),
    "qwen2 moe": ({"model_type": "qwen2_moe", "num_experts": 8}, "mixture of experts"),
    "experts in some layers only": (
        MOE | {"model_type": "qwen3_moe", "mlp_only_layers": [0]}, "mlp_only_layers"),
    "more experts chosen than there are": (
        MOE | {"model_type": "mixtral", "num_experts_per_tok": 9}, "num_experts_per_tok"),
    "clipped queries": (MOE | {"model_type": "olmoe", "clip_qkv": 8.0}, "clip_qkv"),
    "experts in a dense name": ({"num_local_experts": 4}, "mixture of experts"),
    "multimodal": ({"vision_config": {"a": 1}}, "multimodal"),
    "another multimodal": ({"model_type": "llama4", "text_config": {"a": 1}}, "multimodal"),
    "llama 4 by its name": ({"model_type": "llama4", "text_config": {"a": 1}}, "'llama4'"),
    "gemma 3n": ({"model_type": "gemma3n", "text_config": {"a": 1}, "quantization_config": {
        "quant_method": "fp8"}}, "'gemma3n' is not supported"),
    "deepseek by its name": ({"model_type": "deepseek_v3", "n_routed_experts": 8, "auto_map": {
        "AutoConfig": "configuration_deepseek.DeepseekV3Config"}}, "'deepseek_v3'"),
    "falcon with its code": ({"model_type": "falcon", "auto_map": {"AutoConfig": "x.Y"}},
                             "'falcon' is not supported"),
    "granite 4 without experts": (
        {"model_type": "granitemoehybrid", "num_local_experts": 0}, "'granitemoehybrid'"),
    "an embedding model": (
        {"model_type": "qwen3", "architectures": ["Qwen3Model"]}, "Qwen3ForCausalLM"),
    "a tower of another mistral": (
        {"model_type": "mistral3", "architectures": None, "text_config": {
            "model_type": "ministral3"}}, "'ministral3'"),
    "gemma without its windows": (
        {"model_type": "gemma2", "architectures": None, "sliding_window": None}, "sliding_window"),
    "a tower without its section": ({"model_type": "gemma3", "architectures": None}, "text_config"),
    "a tower of another family": (
        {"model_type": "gemma3", "architectures": None, "text_config": {"model_type": "llama"}},
        "text_config.model_type"),
    "remote code": ({"auto_map": {"AutoModel": "evil.Model"}}, "auto_map"),
    "code of another name": (
        {"model_type": "phi3", "architectures": None, "auto_map": {"AutoModel": "evil.Model"}},
        "auto_map"),
    "quantised": ({"quantization_config": {"bits": 4}}, "quantization_config"),
    **{f"quantised by {method}": ({"quantization_config": {"quant_method": method}}, f"{method!r}")
       for method in ("fp8", "awq", "gptq", "bitsandbytes", "compressed-tensors")},
    "quantised by MLX": ({"quantization": {"group_size": 64, "bits": 4}}, "quantised"),
    "mxfp4 in another family": ({"quantization_config": {"quant_method": "mxfp4"}},
                                "quantization_config"),
    "both directions": ({"use_bidirectional_attention": True}, "both directions"),
    "chunked attention": ({"attention_chunk_size": 8}, "chunks"),
    "an unknown rope": ({"rope_scaling": {"type": "proportional", "factor": 4.0}}, "proportional"),
    "yarn without its factor": ({"rope_scaling": {"type": "yarn"}}, "factor"),
    "yarn's ramp backwards": (
        {"rope_scaling": {"type": "yarn", "factor": 4.0, "beta_fast": 1.0, "beta_slow": 2.0}},
        "beta_fast"),
    "longrope of another family": ({"rope_scaling": {"rope_type": "longrope"}}, "longrope"),
    "longrope of the wrong length": (
        {"model_type": "phi3", "architectures": None,
         "rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [1.0] * 2}},
        "short_factor"),
    "dynamic without its factor": ({"rope_parameters": {"rope_type": "dynamic"}}, "factor"),
    "layers without rope of the wrong length": (
        {"model_type": "smollm3", "architectures": None, "no_rope_layers": [1]},
        "no_rope_layers"),
    "rope without its factor": ({"rope_scaling": {"rope_type": "linear"}}, "factor"),
    "rope is not an object": ({"rope_scaling": "linear"}, "rope_scaling"),
    "rope factor NaN": ({"rope_scaling": GOOD_ROPE | {"factor": float("nan")}}, "factor"),
    "equal rope bounds": ({"rope_scaling": GOOD_ROPE | {"high_freq_factor": 1.0}}, "high_freq"),
    "too small a part of the head rotated": (
        {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    "ropes by layer": (
        {"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "rope_parameters"),
    "unknown activation": ({"hidden_act": "relu"}, "relu"),
    "width missing": ({"hidden_size": None}, "hidden_size"),
    "width negative": ({"hidden_size": -8}, "hidden_size"),
    "width huge": ({"hidden_size": 10**12}, "hidden_size"),
    "width a fraction": ({"hidden_size": 8.5}, "hidden_size"),
    "width true": ({"hidden_size": True}, "hidden_size"),
    "layers zero": ({"num_hidden_layers": 0}, "num_hidden_layers"),
    "theta infinite": ({"rope_theta": float("inf")}, "rope_theta"),
    "theta text": ({"rope_theta": "10000"}, "rope_theta"),
    "eps negative": ({"rms_norm_eps": -1e-5}, "rms_norm_eps"),
    "kv heads do not divide": ({"num_key_value_heads": 3}, "num_key_value_heads"),
    "odd head": ({"head_dim": 3}, "head_dim"),
    "tied as text": ({"tie_word_embeddings": "false"}, "tie_word_embeddings"),
    "eos outside the vocabulary": ({"eos_token_id": 10**6}, "eos_token_id"),
    "window zero": ({"model_type": "mistral", "architectures": None, "sliding_window": 0},
                    "sliding_window"),
    "layer types of another length": (
        {"model_type": "qwen2", "architectures": None, "layer_types": ["full_attention"]},
        "layer_types"),
    "unknown layer type": (
        {"model_type": "qwen2", "architectures": None, "layer_types": ["full_attention", "x"]},
        "layer_types"),
    "layer types not a list": (
        {"model_type": "qwen2", "architectures": None, "layer_types": 3}, "layer_types"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_CONFIGS)
def test_a_config_that_is_not_supported_is_refused_before_weights(case, tmp_path):
    change, named = BAD_CONFIGS[case]
    folder = checkpoint(tmp_path, config=change, weights={"not": np.zeros(1, np.float32)})
    refused(folder, "config.json", named)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"null", b"[" * 100_000])
def test_a_config_that_is_not_json_is_refused(content, tmp_path):
    checkpoint(tmp_path)
    (tmp_path / "config.json").write_bytes(content)
    refused(tmp_path, "config.json")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)
KEYS = st.sampled_from(
    [*CONFIG, "rope_scaling", "rope_parameters", "layer_types", "sliding_window", "head_dim",
     "use_sliding_window", "max_window_layers", "attention_bias", "partial_rotary_factor",
     "num_experts", "num_experts_per_tok", "moe_intermediate_size", "no_rope_layers", "text_config",
     "embedding_multiplier", "original_max_position_embeddings"]
)  # fmt: skip


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(changes=st.dictionaries(KEYS, JSON, max_size=4), family=st.sampled_from(
    [*FAMILIES, *TOWERS]))  # fmt: skip
def test_any_config_gives_a_spec_or_a_refusal(changes, family, tmp_path):
    config = CONFIG | {"model_type": family, "architectures": None} | changes
    (tmp_path / "config.json").write_text(json.dumps(config))
    try:
        read_spec(tmp_path)
    except UserError as error:
        assert str(tmp_path) in str(error)


def test_a_checkpoint_in_every_stored_dtype_loads(tmp_path):
    for dtype in (np.float32, np.float16, ml_dtypes.bfloat16):
        folder = tmp_path / np.dtype(dtype).name
        checkpoint(folder, weights={k: v.astype(dtype) for k, v in tensors().items()})
        logits = load_model(folder)(np.zeros((1, 3), np.int32))
        assert logits.dtype == np.float32 and np.isfinite(np.asarray(logits)).all()


def change(name: str, value: np.ndarray | None) -> dict[str, np.ndarray]:
    changed = tensors() | ({} if value is None else {name: value})
    return {k: v for k, v in changed.items() if value is not None or k != name}


Q, NORM = "model.layers.1.self_attn.q_proj.weight", "model.norm.weight"
POISON = np.ones((8, 8), np.float32)
POISON[3, 4] = np.nan
BAD_WEIGHTS = {
    "missing": (change(Q, None), (Q, "missing")),
    "extra": (change("model.layers.2.mlp.up_proj.weight", POISON), ("model.layers.2", "no part")),
    "a bias too many": (change(Q.replace("weight", "bias"), np.ones(8, np.float32)), ("bias",)),
    "wrong shape": (change(Q, np.ones((8, 4), np.float32)), (Q, "[8, 4]", "[8, 8]")),
    "transposed": (change("model.layers.0.mlp.up_proj.weight", np.ones((8, 12), np.float32)),
                   ("up_proj", "[8, 12]", "[12, 8]")),
    "wrong rank": (change(NORM, np.ones((1, 8), np.float32)), (NORM, "[1, 8]")),
    "integers": (change(Q, np.ones((8, 8), np.int8)), (Q, "I8", "unquantised")),
    "doubles": (change(Q, np.ones((8, 8), np.float64)), (Q, "F64")),
    "NaN": (change(Q, POISON), (Q, "NaN")),
    "infinity": (change(NORM, np.full(8, -np.inf, np.float32)), (NORM, "infinity")),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_WEIGHTS)
def test_weights_that_do_not_fit_are_refused_by_tensor(case, tmp_path):
    weights, named = BAD_WEIGHTS[case]
    refused(checkpoint(tmp_path, weights=weights), "model.safetensors", *named) if (
        case != "missing"
    ) else refused(checkpoint(tmp_path, weights=weights), *named)


def test_nan_in_one_layer_of_a_stack_is_named(tmp_path):
    folder = checkpoint(tmp_path, weights=change(Q, POISON))
    with pytest.raises(UserError, match=Q):
        load_model(folder, stacked=True)


def test_a_tied_head_stored_twice_must_be_equal(tmp_path):
    weights = tensors()
    tied = {"tie_word_embeddings": True}
    refused(checkpoint(tmp_path / "a", config=tied, weights=weights), "lm_head.weight", "ties")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    assert load_model(checkpoint(tmp_path / "b", config=tied, weights=weights)).spec.tied


def test_a_tokenizer_larger_than_the_embedding_is_refused(tmp_path):
    folder = checkpoint(tmp_path)
    save_tokenizer(folder, tokens=20)
    refused(folder, "279 tokens", f"{VOCAB} rows")


def lying_header(data: bytes, change) -> bytes:
    (length,) = struct.unpack("<Q", data[:8])
    header = change(json.loads(data[8 : 8 + length]))
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def outside(header):
    header[Q]["data_offsets"] = [10**9, 10**9 + 256]
    return header


def overlapping(header):
    header[Q]["data_offsets"] = header["model.layers.0.self_attn.q_proj.weight"]["data_offsets"]
    return header


def wrong_size(header):
    header[Q]["shape"] = [8, 80]
    return header


def overflowing(header):
    header[Q]["shape"] = [2**62, 2**62]
    return header


BAD_FILES = {
    "empty": lambda data: b"",
    "truncated values": lambda data: data[:-5],
    "truncated header": lambda data: data[:100],
    "header longer than the file": lambda data: struct.pack("<Q", 10**9) + data[8:],
    "header of 2^63 bytes": lambda data: struct.pack("<Q", 2**63) + data[8:],
    "header is not JSON": lambda data: data[:8] + b"x" * (len(data) - 8),
    "bytes outside the file": lambda data: lying_header(data, outside),
    "overlapping tensors": lambda data: lying_header(data, overlapping),
    "shape larger than its bytes": lambda data: lying_header(data, wrong_size),
    "shape that overflows": lambda data: lying_header(data, overflowing),
    "a pickle by another name": lambda data: b"\x80\x04\x95" + data,
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_safetensors_file_that_lies_is_refused(case, tmp_path):
    path = checkpoint(tmp_path) / "model.safetensors"
    path.write_bytes(BAD_FILES[case](path.read_bytes()))
    refused(tmp_path, "model.safetensors", "not a whole safetensors file")


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_damage_to_a_header_is_a_refusal_or_harmless(data, tmp_path):
    path = tmp_path / "model.safetensors"
    if not path.exists():
        save_file({"a": np.ones((2, 3), np.float32)}, path)
        (tmp_path / "whole").write_bytes(path.read_bytes())
    content = bytearray((tmp_path / "whole").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(content[: data.draw(st.integers(0, len(content)))]))
    try:
        opened = Checkpoint(tmp_path)
        for name in opened.names:
            list(opened.blocks(name))
    except UserError:
        pass


def split(folder: Path) -> dict[str, str]:
    """The checkpoint as two shards; returns the weight map, which is not yet written."""
    checkpoint(folder)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    shards = {"one.safetensors": names[:9], "two.safetensors": names[9:]}
    for shard, inside in shards.items():
        save_file({name: weights[name] for name in inside}, folder / shard)
    return {name: shard for shard, inside in shards.items() for name in inside}


def index(folder: Path, weight_map: object) -> Path:
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": weight_map}))
    return folder


def test_shards_load_as_one_file_does(tmp_path):
    tokens = np.arange(6, dtype=np.int32).reshape(1, 6)
    whole = load_model(checkpoint(tmp_path / "whole"))(tokens)
    parts = load_model(index(tmp_path / "parts", split(tmp_path / "parts")))(tokens)
    np.testing.assert_array_equal(np.asarray(whole), np.asarray(parts))


def test_an_index_that_another_checkpoint_left_beside_a_single_file_is_not_read(tmp_path):
    folder = index(checkpoint(tmp_path), {Q: "model-00001-of-00002.safetensors"})
    assert Checkpoint(folder).names == tensors().keys()


@pytest.mark.parametrize(
    "shard", ["../one.safetensors", "/etc/one.safetensors", "a/../../one.safetensors", "..",
              ".safetensors", "x\0.safetensors", "none.safetensors", "one.bin", 7, None]
)  # fmt: skip
def test_a_shard_outside_the_folder_is_never_opened(shard, tmp_path):
    folder = tmp_path / "model"
    weight_map = split(folder)
    (folder / "one.safetensors").rename(tmp_path / "one.safetensors")
    refused(index(folder, weight_map | {Q: shard}), "safetensors")


def test_an_index_must_say_where_tensors_really_are(tmp_path):
    weight_map = split(tmp_path)
    other = {"one.safetensors": "two.safetensors", "two.safetensors": "one.safetensors"}
    refused(index(tmp_path, weight_map | {Q: other[weight_map[Q]]}), Q)
    refused(index(tmp_path, []), "weight_map")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_pickles_are_never_opened(name, tmp_path):
    checkpoint(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'touch owned'\ntR.")
    refused(tmp_path, name, "pickle", "safetensors")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_git_lfs_pointer_is_called_one(name, tmp_path):
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    (checkpoint(tmp_path) / name).write_bytes(pointer)
    refused(tmp_path, name, "Git LFS pointer", "git lfs pull")


def test_a_folder_without_weights_config_or_existence_is_refused(tmp_path):
    refused(tmp_path / "nowhere", "nowhere", "no such folder")
    refused(tmp_path, "config.json")
    checkpoint(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    refused(tmp_path / "model", "no weights")


def test_a_hub_name_without_a_network_says_what_to_do():
    with pytest.raises(UserError, match=r"some/model-that-is-not-there.*hub.*path"):
        load_model("some/model-that-is-not-there")
