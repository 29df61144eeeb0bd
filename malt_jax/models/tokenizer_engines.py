"""The two kinds of tokenizer files that give ids: tokenizer.json and a sentencepiece model.

Each is read by the library that its format belongs to, so that the ids are the file's own. What a
prompt needs beyond them (special tokens as ordinary text, tokens that another file declares), both
engines offer under the same names.
"""

from __future__ import annotations

import base64
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from threading import Lock
from typing import Any

import tokenizers
from tokenizers import AddedToken

from malt_jax.errors import UserError

MAX_GROWTH = 64
"""Characters that a file's own rules may make of one; NFKC's table, the widest known, has 18."""
SPACE = "▁"
"""What sentencepiece writes for a blank."""
FLAGS = ("special", "lstrip", "rstrip", "single_word", "normalized")
"""The flags of an added token."""


class JsonEngine:
    """A tokenizer.json, used as it is.

    `special_tokens`: those that the file itself names (`unk_token`).
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer, path: Path):
        for name in ("normalizer", "decoder", "post_processor"):
            step = getattr(tokenizer, name)
            # The pickled state of a step is its JSON, as it stands in tokenizer.json.
            growth = 1.0 if step is None else _growth(json.loads(step.__getstate__()))
            check_growth(growth, name, path)
        # Longer texts are refused by name elsewhere; nothing is cut or filled up in silence.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        unknown = getattr(tokenizer.model, "unk_token", None)
        self.special_tokens = {"unk_token": unknown} if unknown else {}
        self._tokenizer = tokenizer
        self._lock = Lock()  # `encode_special_tokens` is state of the tokenizer, set for each call

    @property
    def vocabulary(self) -> dict[str, int]:
        """Every token's id, added tokens among them."""
        return self._tokenizer.get_vocab(with_added_tokens=True)

    @property
    def added(self) -> dict[int, AddedToken]:
        """The tokens that are found in a text before it is cut into pieces."""
        return self._tokenizer.get_added_tokens_decoder()

    def add(self, tokens: Mapping[int, AddedToken]) -> None:
        """Adds tokens in the order given, each with the next free id, or replaces known ones."""
        # In few calls, because each of them builds the whole vocabulary anew.
        for special, some in itertools.groupby(tokens.values(), lambda token: token.special):
            add = self._tokenizer.add_special_tokens if special else self._tokenizer.add_tokens
            add([*some])

    def encode(self, text: str, *, special: bool = False, plain: bool = False) -> list[int]:
        """`special` puts BOS and EOS around as the file has it; `plain` finds no special token."""
        with self._lock:
            self._tokenizer.encode_special_tokens = plain
            return self._tokenizer.encode(text, add_special_tokens=special).ids

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=False)


class SentencePieceEngine:
    """A sentencepiece tokenizer.model, read by the sentencepiece library.

    As in transformers, special tokens are found in the text first, and sentencepiece reads each
    stretch between them by itself. So a model that puts a blank in front of a text puts one in
    front of each stretch (Llama 2's `<s>[INST]` is `<s>` and `▁[INST]`), unless `legacy` is false
    in tokenizer_config.json: then only a text's beginning gets one.
    """

    def __init__(self, path: Path, config: dict[str, Any]):
        from sentencepiece import SentencePieceProcessor
        from sentencepiece.sentencepiece_model_pb2 import ModelProto  # type: ignore[attr-defined]

        proto = ModelProto.FromString(path.read_bytes())
        check_growth(_longest_replacement(proto.normalizer_spec.precompiled_charsmap),
                     "normalizer", path)  # fmt: skip
        # With `legacy: false` the stretches after the first go through a second processor, whose
        # model puts no blank in front.
        self._first = self._later = SentencePieceProcessor(model_file=str(path))
        self._prefix = proto.normalizer_spec.add_dummy_prefix
        if config.get("legacy") is False and self._prefix:
            proto.normalizer_spec.add_dummy_prefix = False
            self._later = SentencePieceProcessor(model_proto=proto.SerializeToString())
        library = self._first
        self._pieces = [library.id_to_piece(i) for i in range(library.get_piece_size())]
        self._ids = {piece: i for i, piece in enumerate(self._pieces)}
        # Control and unknown pieces become added tokens: they are found before sentencepiece reads
        # the text, as declared ones are.
        self.added: dict[int, AddedToken] = {
            i: AddedToken(piece, special=True)
            for i, piece in enumerate(self._pieces)
            if library.is_control(i) or library.is_unknown(i)
        }
        # A model without such a token gives -1, which `encode` leaves out.
        self._bos = [library.bos_id()] if config.get("add_bos_token") is not False else []
        self._eos = [library.eos_id()] if config.get("add_eos_token") is True else []
        ids = {name: getattr(library, f"{name}_id")() for name in ("bos", "eos", "unk", "pad")}
        self.special_tokens = {
            f"{name}_token": self._pieces[i] for name, i in ids.items() if i >= 0
        }

    @property
    def vocabulary(self) -> dict[str, int]:
        return self._ids | {token.content: i for i, token in self.added.items()}

    def add(self, tokens: Mapping[int, AddedToken]) -> None:
        """Adds tokens with their ids, or replaces known ones, whose ids stay."""
        known = self.vocabulary
        self.added |= {known.get(token.content, i): token for i, token in tokens.items()}

    def encode(self, text: str, *, special: bool = False, plain: bool = False) -> list[int]:
        ids: list[int] = []
        for start, stretch in self._stretches(text, plain):
            if isinstance(stretch, int):
                ids.append(stretch)
            else:
                ids += (self._later if start else self._first).encode(stretch)
        around = (self._bos, self._eos) if special else ([], [])
        return [i for i in around[0] if i >= 0] + ids + [i for i in around[1] if i >= 0]

    def decode(self, ids: Sequence[int]) -> str:
        # Bytes are joined before they are decoded, since one character may be spread over several
        # byte tokens.
        parts = []
        for i in ids:
            if i in self.added:
                parts.append(self.added[i].content.encode())
            elif self._first.is_byte(i):
                parts.append(bytes([int(self._pieces[i][1:-1], 16)]))  # <0x0A>
            else:
                parts.append(self._pieces[i].replace(SPACE, " ").encode())
        text = b"".join(parts).decode(errors="replace")
        return text.removeprefix(" ") if self._prefix else text

    def _stretches(self, text: str, plain: bool) -> Iterator[tuple[int, str | int]]:
        """Added tokens' ids and the texts between them, each with its place in the text."""
        tokens = {token.content: (i, token) for i, token in self.added.items()}
        # Longest first, because a regular expression takes the first alternative that matches.
        # Without any name, `(?!)` matches nowhere.
        names = sorted(filter(None, tokens), key=len, reverse=True)
        after = 0
        for match in re.finditer("|".join(map(re.escape, names)) or r"(?!)", text):
            index, token = tokens[match.group()]
            start, stop = match.span()
            beside = text[max(start - 1, 0) : start] + text[stop : stop + 1]
            if token.single_word and re.search(r"\w", beside):
                continue
            if plain and token.special:
                # As ordinary text, a name is cut in two: sentencepiece finds some by itself.
                yield after, text[after : start + 1]
                after = start + 1
                continue
            stretch = text[after:start]
            if stretch := stretch.rstrip() if token.lstrip else stretch:
                yield after, stretch
            yield start, index
            after = len(text) - len(text[stop:].lstrip()) if token.rstrip else stop
        if after < len(text):
            yield after, text[after:]


Engine = JsonEngine | SentencePieceEngine


def check_growth(growth: float, step: str, path: Path) -> None:
    """Refuses a stranger's rules that make very long texts of short ones."""
    if growth > MAX_GROWTH:
        raise UserError(
            f"{path}: its {step} can make {growth:.3g} characters of one, allowed: {MAX_GROWTH}; "
            "use another checkpoint's tokenizer."
        )


def _growth(step: dict[str, Any]) -> float:
    """Most characters (for a post-processor: tokens) that a step of a tokenizer.json makes of one.

    Unicode's own forms (NFKD and others) are left out: their growth is bounded by 18.
    """
    match step["type"]:
        case "Sequence":
            # The one list holds the steps; its name differs between normalizers and decoders. Steps
            # run one after the other, so their factors multiply.
            (inner,) = (value for value in step.values() if isinstance(value, list))
            return prod(map(_growth, inner))
        case "Replace":
            made, pattern = len(step["content"]), step["pattern"].get("String")
            # A regular expression may match between any two characters.
            return max(1.0, made / len(pattern)) if pattern else 1.0 + made
        case "Prepend":
            return max(1.0, len(step["prepend"]))
        case "Precompiled":
            return _longest_replacement(base64.b64decode(step["precompiled_charsmap"]))
        case "TemplateProcessing":
            # A piece that is no special token stands for the text itself.
            ids = {name: len(entry["ids"]) for name, entry in step["special_tokens"].items()}
            pieces = [piece.get("SpecialToken") for piece in step["single"]]
            return sum(1 if piece is None else ids[piece["id"]] for piece in pieces)
        case _:
            return 1.0


def _longest_replacement(charsmap: bytes) -> float:
    """Characters of the longest replacement in sentencepiece's table.

    The table holds the size of a trie, the trie, and replacements that end in a NUL.
    """
    start = 4 + int.from_bytes(charsmap[:4], "little")
    return max(len(text.decode(errors="replace")) for text in charsmap[start:].split(b"\0"))
