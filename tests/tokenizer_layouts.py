"""Small tokenizers in the layouts of published checkpoints, as the checkpoints' makers save them.

Vocabularies are trained here on a few lines; pre-tokenizers, normalizers, class names, special
tokens and the settings beside them are those of the published files. Nothing passes through a
transformers converter, which would write its own idea of the class instead.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.processors import ByteLevel, Sequence, TemplateProcessing
from tokenizers.trainers import BpeTrainer

CORPUS = [
    "Question: Natalia sold 48 clips in April, and then half as many in May.\n\nAnswer: 72\n\n",
    "def add(a, b):\n    return a + b\n\n\ndef main():\n\tprint(add(12, 345))\n\n",
    "The answer is 1999.   Three blanks, then\n\nan empty line.\n\n\n\n#### 18\n\n",
    "[INST] How many apples? [/INST] Two plus two is four.\n\n",
    "naïve café Ελληνικά Кириллица 中文 日本語 한국어 हिन्दी עברית العربية 🙂\n\n",
] * 4
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3 = QWEN2.replace(r"\p{N}|", r"\p{N}{1,3}|")


def smollm2(folder: Path) -> None:
    """Digits, then ByteLevel; tokenizer_config.json names GPT-2's class, which cuts otherwise."""
    cut = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = _byte_level(pre_tokenizers.Sequence(cut), specials)
    config = {
        "add_prefix_space": False,
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|im_end|>",
        "unk_token": "<|endoftext|>",
        "tokenizer_class": "GPT2Tokenizer",
        "model_max_length": 8192,
        "vocab_size": 49152,
    }
    _save(folder, tokenizer, config)


def qwen2(folder: Path) -> None:
    """NFC, a cut of its own, tokens for tools that are added but not special."""
    cut = [
        pre_tokenizers.Split(Regex(QWEN2), "isolated"),
        pre_tokenizers.ByteLevel(False, use_regex=False),
    ]
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = _byte_level(pre_tokenizers.Sequence(cut), specials)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.add_tokens(
        [AddedToken(name, normalized=False) for name in ("<tool_call>", "<think>")]
    )
    config = {
        "add_bos_token": False,
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "tokenizer_class": "Qwen2Tokenizer",
    }
    _save(folder, tokenizer, config)


def llama3(folder: Path) -> None:
    """Numbers by three digits, merges ignored for whole words, a BOS by the post-processor."""
    cut = [
        pre_tokenizers.Split(Regex(LLAMA3), "isolated"),
        pre_tokenizers.ByteLevel(False, use_regex=False),
    ]
    specials = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>",
                "<|eot_id|>"]  # fmt: skip
    tokenizer = _byte_level(pre_tokenizers.Sequence(cut), specials)
    tokenizer.model.ignore_merges = True
    bos = [(specials[0], tokenizer.token_to_id(specials[0]))]
    template = TemplateProcessing(single=f"{specials[0]} $A", special_tokens=bos)
    tokenizer.post_processor = Sequence([ByteLevel(trim_offsets=True), template])
    config = {
        "bos_token": specials[0],
        "eos_token": specials[-1],
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    _save(folder, tokenizer, config)


def llama2(folder: Path) -> None:
    """A blank before each stretch between special tokens, spaces as ▁, bytes for the rest."""
    steps = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    tokenizer = _byte_fallback(normalizers.Sequence(steps), None, ["<unk>", "<s>", "</s>"])
    decoder = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*decoder, decoders.Strip(" ", 1, 0)])
    bos = [("<s>", tokenizer.token_to_id("<s>"))]
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=bos)
    config = {
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": {"__type": "AddedToken", "content": "<s>", "normalized": False},
        "eos_token": {"__type": "AddedToken", "content": "</s>", "normalized": False},
        "unk_token": {"__type": "AddedToken", "content": "<unk>", "normalized": False},
        "legacy": False,
        "tokenizer_class": "LlamaTokenizer",
    }
    _save(folder, tokenizer, config)


def gemma(folder: Path) -> None:
    """No blank in front, runs of blanks and lines as added tokens, an image token at the end."""
    specials = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    cut = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer = _byte_fallback(normalizers.Replace(" ", "▁"), cut, specials)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    runs = ["\n\n", "\n\n\n", "▁▁", "▁▁▁", "▁▁▁▁"]
    tokenizer.add_tokens([AddedToken(run, normalized=False) for run in runs])
    tokenizer.add_special_tokens([AddedToken("<image_soft_token>", normalized=False)])
    bos = [("<bos>", tokenizer.token_to_id("<bos>"))]
    tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=bos)
    config = {
        "add_bos_token": True,
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
        "image_token": "<image_soft_token>",
        "tokenizer_class": "GemmaTokenizer",
    }
    _save(folder, tokenizer, config)


LAYOUTS: dict[str, Callable[[Path], None]] = {
    "SmolLM2": smollm2,
    "Qwen2": qwen2,
    "Llama-3": llama3,
    "Llama-2": llama2,
    "Gemma": gemma,
}


def llama2_sentencepiece(folder: Path, **config: Any) -> sentencepiece.SentencePieceProcessor:
    """tokenizer.model alone, trained with Llama's options."""
    options = {"add_dummy_prefix": True, "byte_fallback": True}
    return _sentencepiece(folder, {"tokenizer_class": "LlamaTokenizer", **config}, **options)


def gemma_sentencepiece(folder: Path) -> sentencepiece.SentencePieceProcessor:
    """tokenizer.model alone, with turns and runs of blanks as pieces that the user defined."""
    options = {
        "add_dummy_prefix": False,
        "byte_fallback": True,
        "user_defined_symbols": ["<start_of_turn>", "<end_of_turn>", "\n\n", "▁▁", "▁▁▁"],
        **{"pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3},
        **{"pad_piece": "<pad>", "eos_piece": "<eos>", "bos_piece": "<bos>"},
    }
    return _sentencepiece(folder, {"tokenizer_class": "GemmaTokenizer"}, **options)


def unigram_sentencepiece(folder: Path) -> sentencepiece.SentencePieceProcessor:
    """A unigram model whose text is normalised (NFKC) and stripped of superfluous blanks."""
    options = {
        "model_type": "unigram",
        "vocab_size": 350,
        "normalization_rule_name": "nmt_nfkc",
        "remove_extra_whitespaces": True,
        "byte_fallback": True,
    }
    return _sentencepiece(folder, {"tokenizer_class": "LlamaTokenizer"}, **options)


def _byte_level(cut: pre_tokenizers.PreTokenizer, specials: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = cut, decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=420, special_tokens=specials, initial_alphabet=alphabet,
                         show_progress=False)  # fmt: skip
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def _byte_fallback(
    normalizer: normalizers.Normalizer,
    cut: pre_tokenizers.PreTokenizer | None,
    specials: list[str],
) -> Tokenizer:
    """Character pieces with all bytes for what is none of them, as sentencepiece has it."""
    learned = Tokenizer(BPE())
    learned.normalizer = normalizer
    if cut is not None:
        learned.pre_tokenizer = cut
    lines = [line for text in CORPUS for line in text.split("\n") if line]
    learned.train_from_iterator(lines, BpeTrainer(vocab_size=300, show_progress=False))
    model = json.loads(learned.to_str())["model"]
    pieces = sorted(model["vocab"], key=model["vocab"].get)
    words = [*specials, *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    merges = [tuple(merge) for merge in model["merges"]]
    vocab = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizer
    if cut is not None:
        tokenizer.pre_tokenizer = cut
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in specials])
    return tokenizer


def _save(folder: Path, tokenizer: Tokenizer, config: dict[str, Any]) -> None:
    """tokenizer.json and tokenizer_config.json, whose `added_tokens_decoder` repeats the former."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    added = json.loads(tokenizer.to_str())["added_tokens"]
    entries = {str(token.pop("id")): token for token in added}
    text = json.dumps({"added_tokens_decoder": entries, **config})
    (folder / "tokenizer_config.json").write_text(text)


def _sentencepiece(
    folder: Path, config: dict[str, Any], **options: Any
) -> sentencepiece.SentencePieceProcessor:
    folder.mkdir(parents=True, exist_ok=True)
    defaults = {
        "model_type": "bpe",
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "vocab_size": 420,
        "character_coverage": 1.0,
        "split_digits": True,
        "allow_whitespace_only_pieces": True,
        "minloglevel": 2,
    }
    lines = [line for text in CORPUS for line in text.split("\n") if line]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_prefix=str(folder / "tokenizer"),
        **(defaults | options),
    )
    (folder / "tokenizer.vocab").unlink()
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
