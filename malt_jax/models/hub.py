"""Finds the folder of a model by its name; the only code of `models` that may use the network."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from malt_jax.errors import HubError, UserError, first_line
from malt_jax.models.checkpoint import INDEX, SINGLE, TOKENIZER_FILES, weight_names
from malt_jax.models.hf_config import read_spec
from malt_jax.models.hf_families import QUANTISED_FILES
from malt_jax.models.tokenizer import load_tokenizer

HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
EMBEDDED = "quickstart"
"""The name of the tiny model in the package."""


def local_folder(path: str | os.PathLike, revision: str | None = None) -> tuple[Path, str | None]:
    """The folder, and the commit if the name is one on the hub (`org/name`).

    A folder that exists, and the embedded model, are used as they are, without the network.
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
    return _download(_hub_name(path), revision)


def adapter_folder(path: str | os.PathLike) -> Path:
    """The folder of a PEFT adapter: one on this machine, or downloaded from the hub."""
    folder = Path(path)
    if os.path.isdir(folder):
        for place in (folder, folder / "adapter"):  # an exported role has it in a folder of its own
            if (place / ADAPTER_FILES[0]).is_file():
                return place
        raise UserError(f"{folder}: no {ADAPTER_FILES[0]}, so not a PEFT adapter.")
    name = _hub_name(path)
    downloaded = _snapshot(name, None, ADAPTER_FILES)
    if not (downloaded / ADAPTER_FILES[0]).is_file():
        raise UserError(f"{name}: has no {ADAPTER_FILES[0]} on the hub, so it is no PEFT adapter.")
    return downloaded


def _hub_name(path: str | os.PathLike) -> str:
    name = os.fspath(path)
    # A mistyped path whose parent folder exists is no name to ask the hub for.
    if not HUB_NAME.fullmatch(name) or os.path.isdir(Path(path).parent):
        raise UserError(f"{name}: no such folder, and not a name on the hub (`org/name`).")
    return name


def _download(name: str, revision: str | None) -> tuple[Path, str]:
    """Fetches what is read and no more: configs and tokenizer, then the one set of weights.

    A repository may hold its weights several times over (`consolidated.safetensors`, `original/`).
    """
    # A snapshot's folder is named by its commit. The second call asks for that commit and not for
    # the branch, which may have moved in between.
    first = ["config.json", INDEX, *QUANTISED_FILES, *TOKENIZER_FILES, "tekken.json", "README.md"]
    folder = _snapshot(name, revision, first)
    if not (folder / "config.json").is_file():
        raise UserError(f"{name}: has no config.json on the hub, so it is not a checkpoint.")
    # What is not supported is refused before gigabytes are fetched.
    load_tokenizer(folder, read_spec(folder).vocab)
    _snapshot(name, folder.name, [SINGLE])  # preferred to shards, if the repository has it
    return _snapshot(name, folder.name, weight_names(folder)), folder.name


def _snapshot(name: str, revision: str | None, files: Sequence[str]) -> Path:
    """The folder of a snapshot that holds those of `files` that the repository has."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()  # its lines about retries; a failure is reported below
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(files)))
    except Exception as error:  # the hub's client lets many kinds of network errors through
        raise HubError(
            f"{name}: could not be downloaded from the hub ({first_line(error)}). Check the name, "
            "the network and HF_TOKEN, or download it elsewhere and give the folder's path.",
            error,
        ) from error
