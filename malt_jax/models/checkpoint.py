"""The files of a checkpoint folder; its safetensors files opened without trusting them.

The weights are one `model.safetensors`, or the shards that an index names. Headers are checked (by
the safetensors library: lengths, overlaps, byte ranges within the file) before any value is read,
and values are read slice by slice. Pickled formats are refused by name.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from malt_jax.errors import UserError
from malt_jax.models.hf_config import read_json, unreadable

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
TOKENIZER_FILES = (
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
"""The files of a checkpoint that describe its text; an exported model gets copies of them."""
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
# Plain floating point. Quantised weights have other dtypes, and need scales to be read.
STORED_DTYPES = ("F32", "F16", "BF16")


class Checkpoint:
    """Tensors of a checkpoint folder by name: shapes now, values when asked for."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.files = _weight_files(folder)
        self._slices: dict[str, Any] = {}
        self._file_of: dict[str, Path] = {}
        for path in self.files:
            for name, view in _open(path):
                if name in self._slices:
                    raise UserError(
                        f"{path}: {name} is also in {self._file_of[name].name}; "
                        "download the checkpoint again."
                    )
                self._slices[name], self._file_of[name] = view, path
        _check_index(folder, self._file_of)

    @property
    def names(self) -> set[str]:
        return set(self._slices)

    def place(self, name: str) -> str:
        """The tensor's file and name, for messages."""
        return f"{self._file_of[name]}: {name}"

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._slices[name].get_shape())

    def dtype(self, name: str) -> str:
        """The stored dtype's code: `F32`, `F16` or `BF16`."""
        return self._slices[name].get_dtype()

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """The values of one slice; no others are read."""
        return self._slices[name][index]

    def blocks(self, name: str, bytes_each: int = 64 << 20) -> Iterator[np.ndarray]:
        """The whole tensor as consecutive blocks of rows of about `bytes_each`."""
        shape = self.shape(name)
        # At four bytes per value, those of the widest stored dtype.
        row = 4 * math.prod(shape[1:])
        step = max(1, bytes_each // max(1, row))
        for start in range(0, shape[0], step):
            yield self.read(name, (slice(start, min(start + step, shape[0])),))


def _open(path: Path) -> Iterator[tuple[str, Any]]:
    from safetensors import SafetensorError, safe_open

    # Opening reads the header alone; a slice reads its values when it is indexed.
    try:
        file = safe_open(path, framework="np")
        names = list(file.keys())
        views = [(name, file.get_slice(name)) for name in names]
    except (SafetensorError, OSError, ValueError) as error:
        raise unreadable(path, f"not a whole safetensors file ({error})") from error
    for name, view in views:
        if view.get_dtype() not in STORED_DTYPES:
            raise UserError(
                f"{path}: {name} is stored as {view.get_dtype()}; supported are "
                f"{', '.join(STORED_DTYPES)}. Use the checkpoint's unquantised weights."
            )
        yield name, view


def weight_names(folder: Path) -> list[str]:
    """The files that hold the weights: those that the index names, or the single one."""
    if (folder / INDEX).is_file():
        return sorted(set(_weight_map(folder).values()))
    return [SINGLE]


def _weight_files(folder: Path) -> list[Path]:
    names = weight_names(folder)
    for name in names:
        if os.path.isfile(folder / name):  # unlike Path's, no error for a name that is too long
            continue
        if names != [SINGLE]:
            raise UserError(f"{folder / name}: missing, though {INDEX} names it.")
        found = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLED)
        if found:
            raise UserError(
                f"{folder}: {found[0]} is a pickle, which can run code when it is read and is "
                f"never opened here; save the model as safetensors ({SINGLE})."
            )
        raise UserError(f"{folder}: no weights: expected {SINGLE}, or shards with {INDEX}.")
    return [folder / name for name in names]


def _weight_map(folder: Path) -> dict[str, str]:
    path = folder / INDEX
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{path}: weight_map must be an object that maps tensors to files.")
    # A stranger's names are joined to the folder's path: with a separator in them they could point
    # to any file of this machine.
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or not shard.endswith(".safetensors"):
            raise UserError(f"{path}: {name} is in {shard!r}, which is not a safetensors file.")
        if "/" in shard or "\\" in shard or "\0" in shard or shard.startswith("."):
            raise UserError(f"{path}: {name} is in {shard!r}; shards must lie in the same folder.")
    return weight_map


def _check_index(folder: Path, file_of: dict[str, Path]) -> None:
    if not (folder / INDEX).is_file():
        return
    # The other direction, tensors that the index leaves out, is checked when weights are loaded.
    for name, shard in _weight_map(folder).items():
        if name not in file_of or file_of[name].name != shard:
            raise UserError(f"{folder / shard}: {name} is missing, though {INDEX} says it is here.")
