"""Checkpoints: config.json, weights, tokenizers and chat templates."""

from __future__ import annotations

import json
import os
import struct
from typing import Any

import numpy as np

from malt_jax.models.hf_families import FAMILIES
from wrong_inputs.questions import POINTER
from wrong_inputs.world import BASE, LONG, World, case, flag, index, json_changes, made


def _first(tensors: dict[str, np.ndarray], value: float) -> None:
    name = sorted(tensors)[3]
    tensors[name] = tensors[name].copy()
    tensors[name].flat[5] = value


def _no_words(world: World) -> list[str]:
    model = {"type": "WordLevel", "vocab": {}, "unk_token": "x"}
    parts = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
    data = {"version": "1.0", "added_tokens": [], "model": model} | dict.fromkeys(parts)
    return world.with_model_file("tokenizer.json", json.dumps(data).encode())


def _pickle(world: World) -> list[str]:
    command = world.with_model_file("model.safetensors", None)
    (world.folder / "model" / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    return command


def _larger_tokenizer(world: World) -> list[str]:
    folder = world.model()
    data = json.loads((folder / "tokenizer.json").read_text())
    data["model"]["vocab"]["\u00e9"] = 70
    (folder / "tokenizer.json").write_text(json.dumps(data))
    return world.command()


def _with_normaliser(world: World, steps: list[dict[str, Any]]) -> list[str]:
    path = world.model() / "tokenizer.json"
    data = json.loads(path.read_text())
    data["normalizer"] = {"type": "Sequence", "normalizers": steps}
    path.write_text(json.dumps(data))
    return world.command()


def _of_family(world: World, name: str, **changes: Any) -> list[str]:
    """The embedded model's config.json as one of another family."""
    architecture = FAMILIES[name].architecture
    return world.with_json("config.json", model_type=name, architectures=[architecture], **changes)


def _with_fifo(world: World, name: str) -> list[str]:
    path = world.model() / name
    path.unlink()
    os.mkfifo(path)
    return world.command()


MODELS = (
    case("model: no such folder", flag("--model.path", "/no/such"), "model.path", "no such"),
    case(
        "model: a folder without config.json",
        made(lambda f: (f / "m").mkdir(), "--model.path", "{here}/m"),
        "config.json",
    ),
    case(
        "model: config.json is no JSON",
        lambda w: w.with_model_file("config.json", b"{"),
        "config.json",
    ),
    case(
        "model: unknown family",
        lambda w: w.with_json("config.json", model_type="rwkv"),
        "model_type",
    ),
    case(
        "model: code of its own",
        lambda w: w.with_json("config.json", auto_map={"a": "b"}),
        "auto_map",
    ),
    case(
        "model: quantised",
        lambda w: w.with_json("config.json", quantization_config={"bits": 4}),
        "quantization_config",
    ),
    case(
        "model: mixture of experts",
        lambda w: w.with_json("config.json", num_local_experts=8),
        "experts",
    ),
    case(
        "model: more experts per token than there are",
        lambda w: _of_family(
            w, "qwen3_moe", num_experts=4, num_experts_per_tok=8, moe_intermediate_size=16
        ),
        "num_experts_per_tok",
        "at most 4",
    ),
    case(
        "model: experts in some layers only",
        lambda w: _of_family(
            w, "qwen3_moe", num_experts=4, num_experts_per_tok=2, mlp_only_layers=[0]
        ),
        "mlp_only_layers",
    ),
    case(
        "model: experts without their number",
        lambda w: _of_family(w, "mixtral", num_experts_per_tok=2),
        "num_local_experts",
    ),
    case(
        "model: gpt-oss in another quantisation",
        lambda w: _of_family(w, "gpt_oss", quantization_config={"quant_method": "awq"}),
        "quantization_config",
    ),
    case(
        "model: OLMoE that clips its projections",
        lambda w: _of_family(w, "olmoe", clip_qkv=8.0),
        "clip_qkv",
    ),
    case(
        "model: rope for more layers than there are",
        lambda w: _of_family(w, "smollm3", no_rope_layers=[1]),
        "no_rope_layers",
    ),
    case(
        "model: Phi with code of its own",
        lambda w: _of_family(w, "phi3", auto_map={"AutoModel": "other.Code"}),
        "auto_map",
    ),
    case(
        "model: weights of another family",
        lambda w: _of_family(w, "olmo2"),
        "olmo2",
        "missing",
    ),
    case(
        "model: a vocabulary of 10^18",
        lambda w: w.with_json("config.json", vocab_size=10**18),
        "vocab_size",
    ),
    case(
        "model: a negative width",
        lambda w: w.with_json("config.json", hidden_size=-4),
        "hidden_size",
    ),
    case("model: an odd head", lambda w: w.with_json("config.json", head_dim=31), "head_dim"),
    case(
        "model: unknown rope",
        lambda w: w.with_json("config.json", rope_parameters={"rope_type": "spiral"}),
        "spiral",
    ),
    case(
        "model: a layer too many",
        lambda w: w.with_json("config.json", num_hidden_layers=5),
        "missing",
    ),
    case(
        "model: a layer too few",
        lambda w: w.with_json("config.json", num_hidden_layers=3),
        "no part",
    ),
    case(
        "model: another width", lambda w: w.with_json("config.json", intermediate_size=256), "shape"
    ),
    case("model: no weights", lambda w: w.with_model_file("model.safetensors", None), "no weights"),
    case("model: a pickle", lambda w: _pickle(w), "pickle"),
    case(
        "model: weights cut short",
        lambda w: w.with_model_file(
            "model.safetensors", (BASE / "model.safetensors").read_bytes()[:-100]
        ),
        "model.safetensors",
    ),
    case(
        "model: empty weights",
        lambda w: w.with_model_file("model.safetensors", b""),
        "model.safetensors",
    ),
    case(
        "model: a header of 2^60 bytes",
        lambda w: w.with_model_file("model.safetensors", struct.pack("<Q", 1 << 60) + b"{}"),
        "model.safetensors",
    ),
    case(
        "model: a header that is no JSON",
        lambda w: w.with_model_file("model.safetensors", struct.pack("<Q", 4) + b"{{{{"),
        "model.safetensors",
    ),
    case(
        "model: a header with offsets past the end",
        lambda w: w.with_header(lambda h: h["lm_head.weight"].update(data_offsets=[0, 1 << 50])),
        "model.safetensors",
    ),
    case(
        "model: a header with overlapping tensors",
        lambda w: w.with_header(
            lambda h: h[sorted(h)[2]].update(data_offsets=h[sorted(h)[1]]["data_offsets"])
        ),
        "model.safetensors",
    ),
    case(
        "model: a header with another shape",
        lambda w: w.with_header(lambda h: h["lm_head.weight"].update(shape=[32, 256])),
        "lm_head.weight",
    ),
    case(
        "model: whole numbers for weights",
        lambda w: w.with_header(lambda h: h["lm_head.weight"].update(dtype="I32")),
        "I32",
    ),
    case("model: NaN in a weight", lambda w: w.with_tensors(lambda t: _first(t, np.nan)), "NaN"),
    case(
        "model: infinity in a weight",
        lambda w: w.with_tensors(lambda t: _first(t, np.inf)),
        "infinity",
    ),
    case(
        "model: a tensor is missing",
        lambda w: w.with_tensors(lambda t: t.pop("model.norm.weight")),
        "model.norm.weight",
    ),
    case(
        "model: a tensor too many",
        lambda w: w.with_tensors(lambda t: t.update(extra=np.ones(3, np.float32))),
        "extra",
    ),
    case("model: an index that leaves the folder", index(a="../x.safetensors"), "same folder"),
    case("model: an index to nowhere", index(a="b.safetensors"), "b.safetensors"),
    case("tokenizer: missing", lambda w: w.with_model_file("tokenizer.json", None), "tokenizer"),
    case(
        "tokenizer: damaged",
        lambda w: w.with_model_file("tokenizer.json", b'{"version": "1.0"'),
        "tokenizer",
    ),
    case("tokenizer: larger than the embedding", lambda w: _larger_tokenizer(w), "tokenizer"),
    case(
        "tokenizer: an end token it lacks",
        lambda w: w.with_json("generation_config.json", eos_token_id=999),
        "999",
    ),
    case(
        "chat template: without end",
        lambda w: w.with_json(
            "tokenizer_config.json", chat_template="{% for i in range(10**9) %}x{% endfor %}"
        ),
        "chat template",
    ),
    case(
        "chat template: reaches for Python",
        lambda w: w.with_json("tokenizer_config.json", chat_template="{{ ''.__class__.__mro__ }}"),
        "chat template",
    ),
    case(
        "chat template: drops the message",
        lambda w: w.with_json("tokenizer_config.json", chat_template="hello"),
        "chat template",
    ),
    case(
        "chat template: does not parse",
        lambda w: w.with_json("tokenizer_config.json", chat_template="{% if"),
        "chat template",
    ),
    case("later: a shard's name of 300 letters", index(a=f"{LONG}.safetensors"), "missing"),
    case("later: a line break in a tensor's name", index(**{"a\nb": "c"}), "a b"),
    case(
        "later: layer types in lists",
        json_changes("config.json", layer_types=[["x"]] * 4),
        "layer_types",
    ),
    case(
        "later: a number that is a book",
        json_changes("config.json", hidden_size=LONG * 300),
        "xx...",
    ),
    case(
        "later: a key twice",
        lambda w: w.with_model_file(
            "config.json",
            (BASE / "config.json").read_bytes().replace(b"{", b'{"model_type": 1,', 1),
        ),
        "model_type",
        "twice",
    ),
    case(
        "later: no end token",
        json_changes("generation_config.json", eos_token_id=[]),
        "eos_token_id",
    ),
    case("later: a tokenizer without words", _no_words, "tokenizer"),
    case("later: 5 for a template", json_changes("tokenizer_config.json", chat_template=5), "text"),
    case(
        "later: a template with half a character",
        json_changes(
            "tokenizer_config.json",
            chat_template="{{ '\\ud800' }}{{ messages[-1]['content'] }}",
        ),
        "model.path",
        "surrogate",
    ),
    case(
        "model: a Git LFS pointer for weights",
        lambda w: w.with_model_file("model.safetensors", POINTER.encode()),
        "LFS",
    ),
    case(
        "model: a Git LFS pointer for a tokenizer",
        lambda w: w.with_model_file("tokenizer.json", POINTER.encode()),
        "LFS",
    ),
    case(
        "tokenizer: a model of no kind",
        lambda w: w.with_model_file("tokenizer.json", b'{"version": "1.0", "model": {"type": 1}}'),
        "tokenizer",
    ),
    case(
        "tokenizer: a list",
        lambda w: w.with_model_file("tokenizer.json", b"[]"),
        "tokenizer",
    ),
    case(
        "tokenizer: a normaliser that multiplies",
        lambda w: _with_normaliser(
            w,
            [
                {"type": "Replace", "pattern": {"String": str(n)}, "content": str(n + 1) * 99}
                for n in range(9)
            ],
        ),
        "tokenizer",
        apart=True,
    ),
    case(
        "tokenizer: a FIFO", lambda w: _with_fifo(w, "tokenizer.json"), "tokenizer.json", apart=True
    ),
    case(
        "model: a FIFO for weights",
        lambda w: _with_fifo(w, "model.safetensors"),
        "safetensors",
        apart=True,
    ),
    case(
        "model: a FIFO for config.json",
        lambda w: _with_fifo(w, "config.json"),
        "config.json",
        apart=True,
    ),
)
