"""A model's name -> a folder on this machine; the only code here that may use the network."""

from __future__ import annotations

import os
import re
from pathlib import Path

from malt_jax.errors import UserError

FILES = ("*.safetensors", "*.json", "tokenizer.model", "*.jinja", "merges.txt", "vocab.txt")
"""What is fetched: weights, configs and tokenizer; no pickles, no code."""


EMBEDDED = "quickstart"
"""The name of the tiny model that is shipped with the package."""


def local_folder(path: str | os.PathLike, revision: str | None = None) -> tuple[Path, str | None]:
    """The folder, and the commit where the name is the hub's (`org/name`).

    A folder that exists, and the embedded model, are used as they are, without any network.
    """
    if os.fspath(path) == EMBEDDED:
        if revision is not None:
            raise UserError(f"{EMBEDDED} has no revision {revision!r}; leave it out.")
        return Path(__file__).parents[1] / "assets" / EMBEDDED, None
    folder = Path(path)
    if os.path.isdir(folder):  # unlike Path's, no error for a name that is too long
        if not (folder / "config.json").is_file():
            raise UserError(f"{folder}: no config.json, so not a Hugging Face checkpoint.")
        if revision is not None:
            raise UserError(f"{folder}: a local folder has no revision {revision!r}; leave it out.")
        return folder, None
    name = os.fspath(path)
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name) or os.path.isdir(folder.parent):
        raise UserError(f"{name}: no such folder, and not a name on the hub (`org/name`).")
    return _download(name, revision)


def _download(name: str, revision: str | None) -> tuple[Path, str]:
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=list(FILES)))
    except Exception as error:  # the hub's client lets many kinds of network errors through
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{name}: could not be had from the hub ({first}). Check the name, the network and "
            "HF_TOKEN, or download it elsewhere and give the folder's path."
        ) from error
    if not (folder / "config.json").is_file():
        raise UserError(f"{name}: has no config.json on the hub, so it is not a checkpoint.")
    return folder, folder.name
