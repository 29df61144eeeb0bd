"""What a checkpoint's files say about text: vocabulary, special tokens, chat template.

tokenizer.json is the reference and is used as it is, whatever class tokenizer_config.json names:
to build the tokenizer again by the rules of a class gives other ids for some texts. Tokens that
only another file declares are added, if that changes the ids of nothing else.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tokenizers

from malt_jax.checks import show
from malt_jax.errors import UserError
from malt_jax.models.chat_template import ChatTemplate
from malt_jax.models.hf_fields import MAX_BYTES, read_json, unreadable
from malt_jax.models.tokenizer_engines import FLAGS, Engine, JsonEngine, SentencePieceEngine
from malt_jax.models.tokenizer_probe import compare

# In order of preference: the first that exists is read, the others are not.
VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json")
MAX_TOKEN = 4096
"""Characters of one token; published vocabularies have runs of up to some hundred blanks."""


def open_tokenizer(folder: Path) -> Engine:
    """The engine of the folder's vocabulary, with the added tokens that any file declares."""
    path = next((folder / name for name in VOCABULARIES if (folder / name).is_file()), None)
    if path is None:
        expected = ", ".join(VOCABULARIES)
        if (folder / "tekken.json").is_file():
            expected += (
                "; of tekken.json transformers makes one: AutoTokenizer.from_pretrained(DIR, "
                "mistral_format=False).save_pretrained(DIR) of a downloaded folder"
            )
        raise UserError(f"{folder}: no tokenizer: expected one of {expected}.")
    try:
        engine = _open(path)
    except UserError:
        raise
    except Exception as error:  # parsers in several languages, each with its own exceptions
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise unreadable(path, f"the tokenizer could not be read ({first})") from error
    longest = max(map(len, engine.vocabulary), default=0)
    if not longest:
        raise UserError(f"{folder}: the tokenizer has no token; download the checkpoint again.")
    if longest > MAX_TOKEN:
        raise UserError(
            f"{path}: it has a token of {longest} characters, allowed: {MAX_TOKEN}; use another "
            "checkpoint's tokenizer."
        )
    # An added token changes how the text around it is cut. So this engine is compared with one that
    # is opened again and has the file's own tokens only.
    if _add_declared(engine, folder):
        compare(engine, _open(path), path)
    return engine


def _open(path: Path) -> Engine:
    if path.name == "tokenizer.json":
        return JsonEngine(tokenizers.Tokenizer.from_file(str(path)), path)
    if path.name == "tokenizer.model":
        with open(path, "rb") as file:
            if re.fullmatch(rb"[A-Za-z0-9+/]+=* [0-9]+\s*", file.readline(4096)):
                raise UserError(
                    f"{path}: is a tiktoken file, which does not say how a text is cut; "
                    "transformers makes a tokenizer.json of it (save_pretrained)."
                )
        return SentencePieceEngine(path, _config(path.parent))
    # How vocab.json and merges.txt cut a text is written only in the code of transformers' class.
    # Without this it says on standard error, at every start, that torch is not installed.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from transformers import AutoTokenizer

    made = AutoTokenizer.from_pretrained(
        path.parent, trust_remote_code=False, local_files_only=True
    )
    return JsonEngine(made.backend_tokenizer, path)


def read_special_tokens(folder: Path) -> dict[str, str]:
    """Texts of the special tokens by name (`eos_token`), as the checkpoint's files declare them."""
    path = folder / "special_tokens_map.json"
    # Where both files name a token, tokenizer_config.json wins, as the right side of `|`.
    declared = (read_json(path) if path.is_file() else {}) | _config(folder)
    found = {}
    for name, value in declared.items():
        text = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and isinstance(text, str) and text:
            found[name] = text
    return found


def read_chat_template(folder: Path) -> ChatTemplate | None:
    """The chat template of chat_template.jinja, else of tokenizer_config.json.

    Some multimodal checkpoints have it in chat_template.json alone (Mistral Small 3.1).
    """
    path = folder / "chat_template.jinja"
    if path.is_file():
        try:
            if path.stat().st_size > MAX_BYTES:
                raise ValueError(f"larger than {MAX_BYTES >> 20} MiB")
            text = path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: could not be read as UTF-8 text ({error}).") from error
        # An empty file means that there is no template; tokenizer_config.json is not asked then.
        return ChatTemplate(text, path) if text else None
    path = folder / "tokenizer_config.json"
    template = _config(folder).get("chat_template")
    if not template and (folder / "chat_template.json").is_file():
        path = folder / "chat_template.json"
        template = read_json(path).get("chat_template")
    if isinstance(template, list):  # several by name, of which a chat without tools is `default`
        entries = [entry for entry in template if isinstance(entry, dict)]
        template = {entry.get("name"): entry.get("template") for entry in entries}
    if isinstance(template, dict):
        if "default" not in template:
            raise UserError(
                f"{path}: chat_template: expected one called 'default', found {show([*template])}."
            )
        template = template["default"]
    if template is not None and not isinstance(template, str):
        raise UserError(f"{path}: chat_template: expected text, found {show(template)}.")
    return ChatTemplate(template, path) if template else None


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "tokenizer_config.json"
    return read_json(path) if path.is_file() else {}


def _add_declared(engine: Engine, folder: Path) -> bool:
    """Adds the tokens that only other files declare; says whether there were any."""
    # By rising id, because an engine gives a new token the next free one. Any other order would
    # number the tokens differently from what the file declares.
    declared = sorted(_declared(folder), key=lambda entry: entry[0])
    # Those of the vocabulary's own file stay as that file has them, whatever flags others give.
    own = {token.content for token in engine.added.values()}
    new = {index: token for index, token, _ in declared if token.content not in own}
    if new:
        engine.add(new)
    vocabulary = engine.vocabulary
    for index, token, path in declared:
        if (found := vocabulary.get(token.content)) != index:
            raise UserError(
                f"{path}: {token.content!r} is token {index} here but {found} in the vocabulary; "
                "download the checkpoint again."
            )
    return bool(new)


def _declared(folder: Path) -> Iterator[tuple[int, tokenizers.AddedToken, Path]]:
    """The added tokens of tokenizer_config.json and added_tokens.json."""
    path = folder / "tokenizer_config.json"
    table = _config(folder).get("added_tokens_decoder") or {}
    if not isinstance(table, dict):
        raise UserError(f"{path}: added_tokens_decoder: expected an object, found {show(table)}.")
    for key, entry in table.items():
        content = entry.get("content") if isinstance(entry, dict) else None
        if not key.isascii() or not key.isdigit() or len(key) > 9 or not isinstance(content, str):
            raise UserError(
                f"{path}: added_tokens_decoder: expected ids with their token's content, found "
                f"{show(key)}: {show(entry)}."
            )
        flags = {name: bool(entry[name]) for name in FLAGS if name in entry}
        yield int(key), tokenizers.AddedToken(content, **flags), path
    path = folder / "added_tokens.json"
    # This older file has no flags, so an entry of the table above takes precedence.
    seen = {entry["content"] for entry in table.values()}
    for content, index in (read_json(path) if path.is_file() else {}).items():
        if isinstance(index, bool) or not isinstance(index, int):
            raise UserError(f"{path}: {content!r}: expected an id, found {show(index)}.")
        if content and content not in seen:
            yield index, tokenizers.AddedToken(content), path
