"""The checkpoint's tokenizer: text <-> token ids, chat prompts, and the ids that end a turn."""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from malt_jax.checks import show
from malt_jax.errors import UserError
from malt_jax.models.chat_template import ChatFrame, chat_frame
from malt_jax.models.hf_config import read_json
from malt_jax.models.spec import ModelSpec

FILES = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
)
"""What a checkpoint may say about text: a merged model takes these over."""
VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json")
TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "</s>", "<|end|>", "<|endoftext|>")
"""What chat templates close a turn with; one counts where it is in the vocabulary and template."""


class Tokenizer:
    """A transformers tokenizer behind the few operations this package needs."""

    def __init__(self, backend: Any, end_ids: tuple[int, ...], folder: Path):
        self.backend, self.end_ids, self.folder = backend, end_ids, folder
        self.vocab_size: int = max(backend.get_vocab().values()) + 1
        """One more than the largest id."""
        pad = backend.pad_token_id
        self.pad_id: int = pad if pad is not None else (end_ids[0] if end_ids else 0)
        self._frame = lru_cache(maxsize=8)(self._make_frame)

    @property
    def files(self) -> list[Path]:
        return [self.folder / name for name in FILES if (self.folder / name).is_file()]

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Token ids of `text`; `special` adds what the tokenizer puts around a text (a BOS)."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"the text {text[:60]!r} holds a lone surrogate at character {error.start}, which "
                "is no character; remove it."
            ) from None
        return self._read(text, add_special_tokens=special)

    def unread(self, text: str) -> list[str]:
        """The characters of `text`, each once, that only the one unknown token stands for."""
        unknown = self.backend.unk_token_id
        if unknown is None or unknown not in self.encode(text):
            return []
        return [character for character in dict.fromkeys(text) if unknown in self.encode(character)]

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """The text of any ids; ids outside the vocabulary stand for nothing."""
        known = [int(i) for i in ids if 0 <= i < self.vocab_size and int(i) in self._ids]
        return self.backend.decode(
            known, skip_special_tokens=skip_special, clean_up_tokenization_spaces=False
        )

    @property
    def has_chat_template(self) -> bool:
        return self._template is not None

    def render(self, prompt: str, system: str | None = None) -> str:
        """One user message in the model's chat format, up to where its answer begins."""
        return self._frame(system).render(prompt)

    def prompt_ids(self, text: str, system: str | None = None) -> list[int]:
        """Ids to complete: the chat-rendered message, or for a base model the plain text.

        A message that spells a special token (`<|im_end|>`) gets it as ordinary text: only the
        template itself can open or close a turn.
        """
        if not self.has_chat_template:
            if system is not None:
                raise UserError(f"{self.folder}: no chat template, so no system message.")
            return self._plain(text) if self._spells_special(text) else self.encode(text, True)
        frame = self._frame(system)
        message = frame.content(text)
        if not self._spells_special(message):
            return self.encode(frame.before + message + frame.after)
        return self.encode(frame.before) + self._plain(message) + self.encode(frame.after)

    @cached_property
    def _ids(self) -> frozenset[int]:
        return frozenset(self.backend.get_vocab().values())

    @cached_property
    def _special_texts(self) -> tuple[str, ...]:
        added = self.backend.added_tokens_decoder.values()
        return tuple(str(token) for token in added if token.special)

    def _spells_special(self, text: str) -> bool:
        return any(special in text for special in self._special_texts)

    def _plain(self, text: str) -> list[int]:
        """Ids of the text with special tokens' names read as ordinary characters."""
        return self._read(text, add_special_tokens=False, split_special_tokens=True)

    def _read(self, text: str, **options: bool) -> list[int]:
        try:
            return list(self.backend(text, **options).input_ids)
        except Exception as error:  # a vocabulary that lacks its unknown token raises a bare one
            raise UserError(
                f"{self.folder}: the tokenizer cannot read {text[:60]!r} ({error})."
            ) from error

    @cached_property
    def _template(self) -> str | None:
        template = self.backend.chat_template
        if isinstance(template, dict):
            template = template.get("default")
        if template is not None and not isinstance(template, str):
            found = show(template)
            raise UserError(f"{self.folder}: chat_template: expected text, found {found}.")
        return template or None

    def _make_frame(self, system: str | None) -> ChatFrame:
        if self._template is None:
            raise UserError(f"{self.folder}: the tokenizer has no chat template.")
        names = ("bos_token", "eos_token", "unk_token", "pad_token")
        tokens = {name: getattr(self.backend, name) for name in names}
        try:
            return chat_frame(
                self._template, {k: str(v) for k, v in tokens.items() if v is not None}, system
            )
        except UserError as error:
            raise UserError(f"{self.folder}: {error}") from None


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer in a checkpoint folder (fast, or sentencepiece); never its own code."""
    if not any((folder / name).is_file() for name in VOCABULARIES):
        raise UserError(f"{folder}: no tokenizer: expected one of {', '.join(VOCABULARIES)}.")
    # Without it transformers says on standard error, at every start, that torch is not installed.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from transformers import AutoTokenizer

    try:
        backend = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
    except Exception as error:  # parsers in several languages, each with its own exceptions
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{folder}: the tokenizer could not be read ({first}); download the checkpoint again."
        ) from error
    if not backend.get_vocab():
        raise UserError(f"{folder}: the tokenizer has no token; download the checkpoint again.")
    backend.model_max_length = 1 << 60  # longer text is refused by name, not warned about
    tokenizer = Tokenizer(backend, (), folder)
    tokenizer.end_ids = _end_ids(tokenizer)
    return tokenizer


def check_vocabulary(tokenizer: Tokenizer, spec: ModelSpec) -> None:
    """Refuses a tokenizer of more tokens than the model knows."""
    if tokenizer.vocab_size > spec.vocab:
        raise UserError(
            f"{tokenizer.folder}: the tokenizer has {tokenizer.vocab_size} tokens but the "
            f"embedding {spec.vocab} rows; tokenizer and weights do not belong together."
        )


def _end_ids(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Every id that ends a turn: the tokenizer's, the generation config's and the chat's own."""
    backend, folder = tokenizer.backend, tokenizer.folder
    found: list[int] = [] if backend.eos_token_id is None else [backend.eos_token_id]
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        declared = read_json(path).get("eos_token_id") if path.is_file() else None
        if declared == []:
            raise UserError(f"{path}: eos_token_id lists nothing; give an id, or leave it out.")
        for i in declared if isinstance(declared, list) else [declared]:
            if i is None:
                continue
            if isinstance(i, bool) or not isinstance(i, int) or i not in tokenizer._ids:
                raise UserError(f"{path}: eos_token_id {i!r} is not in the tokenizer's vocabulary.")
            found.append(i)
    vocabulary = backend.get_vocab()
    template = tokenizer._template or ""
    found += [vocabulary[text] for text in TURN_ENDS if text in vocabulary and text in template]
    return tuple(dict.fromkeys(found))
