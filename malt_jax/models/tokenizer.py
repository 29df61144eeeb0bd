"""The checkpoint's tokenizer: text <-> token ids, chat prompts, and the ids that end a turn."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from malt_jax.errors import UserError
from malt_jax.models.chat_template import ChatFrame, ChatTemplate, chat_frame
from malt_jax.models.checkpoint import TOKENIZER_FILES
from malt_jax.models.hf_fields import read_json
from malt_jax.models.thoughts import CHANNEL, AnyThoughts, find_format
from malt_jax.models.tokenizer_engines import FLAGS, Engine
from malt_jax.models.tokenizer_files import open_tokenizer, read_chat_template, read_special_tokens

TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "</s>", "<|end|>", "<|endoftext|>")
"""Tokens that chat templates close a turn with; used where vocabulary and template have them."""
MAX_FRAMES = 64
"""Chat frames kept, one per system message and template arguments: those of the most roles."""
# Larger than any id: the limit of a tokenizer that is opened without its model.
NO_LIMIT = 1 << 62


class Tokenizer:
    """Encodes and decodes as the checkpoint's own tokenizer file does."""

    def __init__(
        self,
        engine: Engine,
        folder: Path,
        special_tokens: dict[str, str],
        template: ChatTemplate | None = None,
        rows: int | None = None,
    ):
        """`special_tokens`: text by name (`eos_token`); `rows`: of the model's embedding table."""
        self.folder, self.special_tokens = folder, special_tokens
        self._engine, self._template, self._rows = engine, template, rows or NO_LIMIT
        self._vocabulary = engine.vocabulary
        self._names = {i: text for text, i in self._vocabulary.items()}
        # Of the known turn ends only those that the template writes count: a vocabulary may hold a
        # `</s>` that this model never ends a turn with.
        written = "" if template is None else template.text
        self._turn_ends = {text for text in TURN_ENDS if text in written}
        if CHANNEL in written:  # there it ends one message of several, and <|return|> the turn
            self._turn_ends -= {"<|end|>"}
        self._special_texts = {*special_tokens.values(), *self._turn_ends}
        for index, token in engine.added.items():
            if token.content in self._special_texts and not token.special:
                # So that it, too, can be read as ordinary text in a message.
                flags = {name: getattr(token, name) for name in FLAGS if name != "special"}
                engine.add({index: AddedToken(token.content, **flags, special=True)})
            if token.special:
                self._special_texts.add(token.content)
        self._special_ids = {
            self._vocabulary[text] for text in self._special_texts if text in self._vocabulary
        }
        # A frame costs a process. The cache belongs to the instance: as a decorator of the method
        # it would be one for all tokenizers and keep each of them alive.
        self._frame = lru_cache(maxsize=MAX_FRAMES)(self._make_frame)
        self._system: str | None = None
        self._arguments = "{}"
        self._views: dict[tuple[str | None, str], Tokenizer] = {}
        self.end_ids = self._find_end_ids()

    @property
    def files(self) -> list[Path]:
        """The files that this tokenizer was made from."""
        return [self.folder / name for name in TOKENIZER_FILES if (self.folder / name).is_file()]

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return max(self._names) + 1

    @property
    def has_chat_template(self) -> bool:
        return self._template is not None

    def with_chat(self, system: str | None, arguments: Mapping[str, Any]) -> Tokenizer:
        """The same tokenizer, whose prompts have a system message and template arguments.

        Raises UserError without a chat template, and for an argument that it never reads.
        """
        if self._template is None:
            raise UserError(f"{self.folder}: the model has no chat template; leave this out.")
        settings = system, json.dumps(arguments, sort_keys=True)
        if settings not in self._views:
            for name in arguments:
                self._template.check_argument(name)
            other = copy.copy(self)
            other.__dict__.pop("thoughts", None)
            other._system, other._arguments = settings
            self._views[settings] = other
        return self._views[settings]

    @cached_property
    def thoughts(self) -> AnyThoughts | None:
        """How completions of these prompts write thoughts; None if the model has none."""
        if self._template is None:
            return None
        after = lambda: self._chat_frame(None).after  # noqa: E731
        decode = partial(self.decode, skip_special=False)
        return find_format(self._template.text, self._vocabulary, after, self._encode, decode)

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Token ids of `text`; `special` adds what the tokenizer puts around a text (a BOS)."""
        return self._encode(text, special=special)

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """The text of any ids; an id that is outside the vocabulary is left out."""
        # Left out here and not by the engine: what is special by another file may be an ordinary
        # piece of its vocabulary.
        skipped = self._special_ids if skip_special else ()
        known = [i for i in map(int, ids) if i in self._names and i not in skipped]
        return self._engine.decode(known)

    def unread(self, text: str) -> list[str]:
        """The characters of `text`, each once, that the tokenizer can only read as unknown."""
        unknown = self._vocabulary.get(self.special_tokens.get("unk_token", ""))
        # One encoding clears most texts; only the others are tried character by character.
        if unknown is None or unknown not in self.encode(text):
            return []
        return [character for character in dict.fromkeys(text) if unknown in self.encode(character)]

    def render(self, prompt: str, system: str | None = None) -> str:
        """One user message in the model's chat format, up to where its answer begins."""
        return self._chat_frame(system).render(prompt)

    def prompt_ids(self, text: str, system: str | None = None) -> list[int]:
        """Ids to complete: the chat-rendered message, or for a base model the plain text.

        A message that spells a special token (`<|im_end|>`) gets it as ordinary text: only the
        template itself can open or close a turn.
        """
        if not self.has_chat_template:
            if system is not None:
                raise UserError(f"{self.folder}: no chat template, so no system message.")
            plain = self._spells_special(text)
            return self._encode(text, special=not plain, plain=plain)
        frame = self._chat_frame(system)
        message = frame.content(text)
        # The whole prompt is encoded at once where that is safe: at the seams of separate parts,
        # characters that belong to one token would be cut apart.
        if not self._spells_special(message):
            return self._encode(frame.before + message + frame.after)
        return [
            *self._encode(frame.before),
            *self._encode(message, plain=True),
            *self._encode(frame.after),
        ]

    def _spells_special(self, text: str) -> bool:
        return any(special in text for special in self._special_texts)

    def _encode(self, text: str, *, special: bool = False, plain: bool = False) -> list[int]:
        """Token ids; `plain` reads the names of special tokens as ordinary characters."""
        # Checked first, so that the message can say where the surrogate is.
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"the text {text[:60]!r} holds a lone surrogate at character {error.start}, which "
                "is no character; remove it."
            ) from None
        try:
            ids = self._engine.encode(text, special=special, plain=plain)
        except Exception as error:  # the libraries' errors have no type of their own
            raise UserError(
                f"{self.folder}: the tokenizer cannot read {text[:60]!r} ({error})."
            ) from error
        # JAX does not raise for an index out of bounds, so an id that has no row would be embedded
        # as something else in silence.
        for i in ids:
            if i >= self._rows:
                raise UserError(
                    f"{self.folder}: the text {text[:60]!r} holds {self._names[i]!r}, "
                    f"token {i}, for which the embedding of {self._rows} rows has none; leave this "
                    "token out."
                )
        return ids

    def _chat_frame(self, system: str | None) -> ChatFrame:
        return self._frame(self._system if system is None else system, self._arguments)

    def _make_frame(self, system: str | None, arguments: str) -> ChatFrame:
        if self._template is None:
            raise UserError(f"{self.folder}: the tokenizer has no chat template.")
        variables = self.special_tokens | json.loads(arguments)
        return chat_frame(self._template, variables, system)

    def _is_unused(self, i: Any) -> bool:
        """Whether the embedding has a row for the id, but the vocabulary no text."""
        return type(i) is int and i not in self._names and 0 <= i < self._rows < NO_LIMIT

    def _find_end_ids(self) -> tuple[int, ...]:
        """Every id that ends a turn: by tokenizer, generation config, config and chat template."""
        # Where each id was declared, for messages. The order counts: the tokenizer's own eos_token
        # comes first. -1 stands for what has no id, and is refused below.
        found: dict[int, str] = {}
        if (eos := self.special_tokens.get("eos_token")) is not None:
            found[self._vocabulary.get(eos, -1)] = f"{self.folder}: eos_token {eos!r}"
        declared: Any = None
        for name in ("generation_config.json", "config.json"):
            # As in transformers, config.json counts where the other one says nothing: many hold
            # the default of their class there, an id that means something else in this vocabulary.
            if declared is not None:
                break
            path = self.folder / name
            declared = read_json(path).get("eos_token_id") if path.is_file() else None
            if declared == []:
                raise UserError(f"{path}: eos_token_id lists nothing; give an id, or leave it out.")
            ids = [
                i for i in (declared if isinstance(declared, list) else [declared]) if i is not None
            ]
            # An id that only fills up the embedding has no text, and nothing that the model writes;
            # beside an end that has one it is left out.
            others = [i for i in ids if not self._is_unused(i)]
            for i in others or ids:
                valid = isinstance(i, int) and not isinstance(i, bool)
                found.setdefault(i if valid else -1, f"{path}: eos_token_id {i!r}")
        for text in sorted(self._turn_ends & self._vocabulary.keys(), key=TURN_ENDS.index):
            found.setdefault(self._vocabulary[text], f"{self.folder}: {text!r}")
        for i, source in found.items():
            if i not in self._names:
                raise UserError(f"{source} is not in the tokenizer's vocabulary.")
            if i >= self._rows:
                raise UserError(
                    f"{source} is token {i} and ends a turn, but the embedding has {self._rows} "
                    "rows; tokenizer and weights do not belong together."
                )
        return tuple(found)


def load_tokenizer(folder: Path, rows: int | None = None) -> Tokenizer:
    """The tokenizer in a checkpoint folder, by its files alone: no code of the checkpoint is run.

    `rows`: the rows of the model's embedding. A vocabulary that is larger is refused. Added tokens
    beyond it are not (Gemma 3 has one for images): only a text that uses one is.
    """
    engine = open_tokenizer(folder)
    largest = max(engine.vocabulary.values() - engine.added.keys(), default=0)
    if rows is not None and largest >= rows:
        raise UserError(
            f"{folder}: the tokenizer has {largest + 1} tokens but the embedding {rows} rows; "
            "tokenizer and weights do not belong together."
        )
    # What the other files declare overrides what the vocabulary's file says of itself.
    names = engine.special_tokens | read_special_tokens(folder)
    return Tokenizer(engine, folder, names, read_chat_template(folder), rows)
