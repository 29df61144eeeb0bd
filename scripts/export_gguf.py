"""Writes an exported role (or any Llama checkpoint) as a GGUF file, unquantised, for llama.cpp.

    pip install gguf
    python scripts/export_gguf.py runs/quickstart/export/refiner refiner.gguf

For models whose tokenizer llama.cpp does not know, as the quickstart's. For all others llama.cpp's
own `convert_hf_to_gguf.py` reads the same folder and knows every family. Give prompts as token ids:
of a tokenizer that llama.cpp does not know, the file holds the texts of the tokens only.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from malt_jax.errors import UserError

NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    """The name of a tensor in a GGUF file."""
    if name in NAMES:
        return NAMES[name]
    _, _, layer, part = name.removesuffix(".weight").split(".", 3)
    return f"blk.{layer}.{LAYER[part]}.weight"


def permute(weight: np.ndarray, heads: int) -> np.ndarray:
    """Interleaves the rotary channel pairs of a q or k projection, as llama.cpp has them."""
    rows, columns = weight.shape
    halves = weight.reshape(heads, 2, rows // heads // 2, columns)
    return halves.swapaxes(1, 2).reshape(rows, columns)


def export(folder: Path, target: Path) -> int:
    """Writes the checkpoint in `folder` to `target`; returns the number of tensors."""
    import gguf

    config = json.loads((folder / "config.json").read_text())
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    scaling = rope.get("rope_type")
    if config["model_type"] != "llama" or scaling not in (None, "default"):
        raise UserError(
            f"{folder}: a {config['model_type']} with rope {scaling}; this script writes Llama "
            "without rope scaling, llama.cpp's convert_hf_to_gguf.py all others."
        )
    # transformers 5 writes the base into rope_parameters, older versions beside it.
    if (theta := rope.get("rope_theta", config.get("rope_theta"))) is None:
        raise UserError(
            f"{folder}: config.json has no rope_theta, neither in rope_parameters nor by itself; "
            "add the base of the rotary frequencies that the model was trained with."
        )
    writer = gguf.GGUFWriter(target, "llama")
    heads = {"q": config["num_attention_heads"], "k": config["num_key_value_heads"]}
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads["q"])
    writer.add_head_count_kv(heads["k"])
    head_dim = config.get("head_dim") or config["hidden_size"] // heads["q"]
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(theta)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    _add_tokenizer(writer, folder, config)
    count = 0
    for path in sorted(folder.glob("*.safetensors")):
        for name, weight in load_file(path).items():
            weight = weight.astype(np.float32)
            if kind := next((k for k in heads if f".{k}_proj." in name), None):
                weight = permute(weight, heads[kind])
            writer.add_tensor(gguf_name(name), weight)
            count += 1
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return count


def _add_tokenizer(writer: Any, folder: Path, config: dict[str, Any]) -> None:
    from gguf import TokenType

    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    by_id = {id: text for text, id in tokenizer["model"]["vocab"].items()}
    special = {one["id"]: one["content"] for one in tokenizer["added_tokens"]}
    texts = [(by_id | special).get(id, f"<unused{id}>") for id in range(config["vocab_size"])]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(texts)
    writer.add_token_types(
        [TokenType.CONTROL if id in special else TokenType.NORMAL for id in range(len(texts))]
    )
    # llama.cpp wants at least one merge; this one can never be applied.
    merges = tokenizer["model"].get("merges") or ["<pad> <pad>"]
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_add_bos_token(False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("target", type=Path)
    words = parser.parse_args()
    try:
        count = export(words.folder, words.target)
    except (UserError, OSError) as error:
        sys.exit(f"export_gguf: {error}")
    print(f"{words.target}: {count} tensors, {words.target.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
