"""A random Llama of a few thousand parameters over characters, and a task it gets right by luck.

python tests/tiny.py FOLDER     # writes the model and a config of the whole loop
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import yaml
from safetensors.numpy import save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from malt_jax.tasks.base import Grade, Question, Task

CHARACTERS = "0123456789+-*=x,<>?! abcdefghijklmnopqrstuvwyzGVRTD\n"


def write_model(folder: Path, *, layers: int = 1, width: int = 32, seed: int = 0) -> Path:
    """A Hugging Face folder: config, float32 safetensors, a character tokenizer.

    One layer, since the time of a run of so small a model is that of compiling it; the tests of
    models and samplers have models of their own, with several layers.
    """
    folder.mkdir(parents=True, exist_ok=True)
    vocab = ["<pad>", "<s>", "</s>", "<unk>", *CHARACTERS]
    heads, d_mlp = 4, 2 * width
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": len(vocab),
        "hidden_size": width, "intermediate_size": d_mlp, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": 2, "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": True,
        "hidden_act": "silu", "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
        "torch_dtype": "float32",
    }  # fmt: skip
    rng = np.random.default_rng(seed)

    def drawn(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)

    # A single layer says the last token again, if what it adds is small beside the embedding.
    gain = {"self_attn.o_proj": 4.0, "mlp.down_proj": 4.0} if layers == 1 else {}
    tensors = {"model.embed_tokens.weight": 2 * drawn(len(vocab), width)}
    tensors["model.norm.weight"] = np.ones(width, np.float32)
    for i in range(layers):
        prefix = f"model.layers.{i}."
        for name, shape in {
            "self_attn.q_proj": (width, width), "self_attn.k_proj": (width // 2, width),
            "self_attn.v_proj": (width // 2, width), "self_attn.o_proj": (width, width),
            "mlp.gate_proj": (d_mlp, width), "mlp.up_proj": (d_mlp, width),
            "mlp.down_proj": (width, d_mlp),
        }.items():  # fmt: skip
            tensors[f"{prefix}{name}.weight"] = np.float32(gain.get(name, 1.0)) * drawn(*shape)
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}{name}.weight"] = np.ones(width, np.float32)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer(models.WordLevel({t: i for i, t in enumerate(vocab)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(["<pad>", "<s>", "</s>", "<unk>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    ends = [2, *(vocab.index(c) for c in "xyz<>?! ,")]  # or it would never end
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>",
                "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>",
                "clean_up_tokenization_spaces": False,
            }
        )
    )  # fmt: skip
    return folder


class LuckGrader:
    """Right when the text has an even number of vowels: a random model is right half the time."""

    def extract(self, text: str) -> str | None:
        return str(sum(c in "aeiou" for c in text) % 2) if text else None

    def grade(self, texts: Sequence[str], questions: Sequence[Question]) -> list[Grade]:
        parsed = [self.extract(text) for text in texts]
        return [Grade(p, p == q.answer) for p, q in zip(parsed, questions, strict=True)]


def _load(split, path=None, limit=None, seed=None):
    count = limit or 8
    return [Question(f"{split}{i}", f"{split[0]}{i}+{i}=?", "0", {}) for i in range(count)]


LUCK = Task(
    name="luck",
    description="An even number of vowels.",
    load=_load,
    grader=LuckGrader(),
    templates={
        "generator": "G {question} ",
        "verifier": "V {question} {generator} ",
        "refiner": "R {question} {generator} {verifier} ",
        "retry": "T {question} {previous} ",
        "debate": "D {question} {previous} {others} ",
    },
    answer_format="any text",
)
"""`--task.name tiny:LUCK` where the tests' folder is importable."""

ROLE = {"temperature": 1.0, "max_new_tokens": 8, "branch": 3}
SMALL = {
    "task": {"name": "tiny:LUCK", "num_train": 4, "num_eval": 5},
    "pipeline": {
        "roles": [
            {"name": "generator", "train": "sft", **ROLE},
            {"name": "verifier", "answers": False, **ROLE},
            {"name": "refiner", **ROLE},
        ]
    },
    "sampler": {"prefix_buckets": [64], "new_token_buckets": [8]},
    "train": {"lora": {"rank": 4}, "sft": {"epochs": 1}, "dpo": {"epochs": 1}},
    "eval": {"trees": 2},
}
"""A config whose whole loop takes seconds, but for compiling; give it a `model.path`."""

ONE_BATCH = {**SMALL["sampler"], "rows": 8}
"""A sampler with one batch size per stream, so that one decode program is compiled instead of five.
`test_run` runs the whole loop with all of them."""


def main(folder: Path) -> None:
    """Every stage has several points to stop at: blocks of two questions, saves every two steps."""
    training = {"epochs": 2, "batch_size": 4, "loop": {"save_every": 2}}
    config = {
        **SMALL,
        "model": {"path": str(write_model(folder / "model").absolute())},
        "search": {"block": 2},
        "train": {"lora": {"rank": 4}, "sft": training, "dpo": training},
        "eval": {"trees": 1, "block": 2, "systems": ["sa", "ma", "malt"], "baseline": "sa@3"},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
