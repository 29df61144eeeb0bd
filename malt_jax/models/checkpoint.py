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
from malt_jax.models import mxfp4
from malt_jax.models.hf_fields import read_json, unreadable

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
TOKENIZER_FILES = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "vocab.json",
    "merges.txt",
)
"""The files of a checkpoint that describe its text; an exported model gets copies of them."""
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
STORED_DTYPES = ("F32", "F16", "BF16")
QUANTISED_DTYPES = ("I8", "U8", "I4", "U4", "F8_", "F6_", "F4")
"""How the codes of dtypes begin that only quantised weights have, which need scales to be read."""
QUANTISED_NAMES = (".qweight", ".qzeros", ".g_idx", ".weight_packed")
"""How tensors are called that pack several values into one integer (GPTQ, AWQ)."""
IGNORED = (".rotary_emb.inv_freq", ".self_attn.bias", ".self_attn.masked_bias")
"""Tensors in some old checkpoints that hold no weights, but tables made from config.json."""
HEAD = "lm_head.weight"
MODULES = ("layers.", "embed_tokens.", "norm.")
"""Where tensors lie in the model inside of the one with a head; saved alone, they begin so."""
TOWER_PREFIXES = {
    "language_model.model.": "model.",
    "model.language_model.": "model.",
    "language_model.lm_head.": "lm_head.",
}
"""Where a multimodal checkpoint keeps the tensors of its text model, and what they are there."""


class Checkpoint:
    """Tensors of a checkpoint folder by name: shapes now, values when asked for.

    Of a multimodal checkpoint those of the text tower (`tower`), under the names that the text
    model has on its own. MXFP4 tensors appear as the floating-point tensor that they stand for.
    """

    def __init__(self, folder: Path, *, tower: bool = False):
        self.folder = folder
        self.files = _weight_files(folder)
        self._tensors: dict[str, Any] = {}
        self._file_of: dict[str, Path] = {}
        stored_in: dict[str, Path] = {}
        views = {}
        for path in self.files:
            for stored, view in _open(path):
                if stored in stored_in:
                    raise UserError(
                        f"{path}: {stored} is also in {stored_in[stored].name}; "
                        "download the checkpoint again."
                    )
                stored_in[stored], views[stored] = path, view
        # As in transformers, the tensors may be those of the model without its head (`LlamaModel`).
        inner = not tower and not any(stored.startswith("model.") for stored in views)
        for stored, view in views.items():
            if stored.endswith(IGNORED):
                continue
            name = f"model.{stored}" if inner and stored.startswith(MODULES) else stored
            if (own := _text_name(name) if tower else name) is not None:
                self._tensors[own], self._file_of[own] = view, stored_in[stored]
        _check_index(folder, stored_in)
        self._pair_mxfp4()

    def _pair_mxfp4(self) -> None:
        """Replaces blocks and scales by the tensors that they stand for; refuses other integers."""
        for name in [name for name in self._tensors if name.endswith(mxfp4.BLOCKS)]:
            base = name.removesuffix(mxfp4.BLOCKS)
            views = [self._tensors.pop(name), self._tensors.pop(base + mxfp4.SCALES, None)]
            shapes = [None if view is None else tuple(view.get_shape()) for view in views]
            if shapes[0] is None or not mxfp4.fit(shapes[0], shapes[1]):
                raise UserError(
                    f"{self._file_of[name]}: {name} of shape {shapes[0]} with scales of shape "
                    f"{shapes[1]} are no MXFP4 tensor; download the checkpoint again."
                )
            self._tensors[base] = mxfp4.Mxfp4(*views)
            self._file_of[base] = self._file_of.pop(name)
            self._file_of.pop(base + mxfp4.SCALES)
        for name, tensor in self._tensors.items():
            if (dtype := tensor.get_dtype()) not in STORED_DTYPES:
                packed = dtype.startswith(QUANTISED_DTYPES) or name.endswith(QUANTISED_NAMES)
                what = (
                    "use the checkpoint's unquantised weights"
                    if packed
                    else "save the model in one of them, with transformers' save_pretrained"
                )
                raise UserError(
                    f"{self.place(name)} is stored as {dtype}; supported are "
                    f"{', '.join(STORED_DTYPES)}: {what}."
                )

    @property
    def names(self) -> set[str]:
        return set(self._tensors)

    def place(self, name: str) -> str:
        """The tensor's file and name, for messages."""
        return f"{self._file_of[name]}: {name}"

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name].get_shape())

    def dtype(self, name: str) -> str:
        """The stored dtype's code: `F32`, `F16` or `BF16`."""
        return self._tensors[name].get_dtype()

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """The values of one slice; no others are read, except those that a step leaves out."""
        # The library reads contiguous slices only.
        whole = tuple(slice(one.start, one.stop) for one in index)
        steps = tuple(slice(None, None, one.step) for one in index)
        return self._tensors[name][whole][steps]

    def blocks(self, name: str, bytes_each: int = 64 << 20) -> Iterator[np.ndarray]:
        """The whole tensor as consecutive blocks of rows of about `bytes_each`."""
        shape = self.shape(name)
        # At four bytes per value, those of the widest stored dtype.
        row = 4 * math.prod(shape[1:])
        step = max(1, bytes_each // max(1, row))
        for start in range(0, shape[0], step):
            yield self.read(name, (slice(start, min(start + step, shape[0])),))


def _text_name(name: str) -> str | None:
    """The name of a multimodal checkpoint's tensor in the text model, or None for other towers."""
    # transformers 4 wrote `language_model.model.` and, for a time, `model.language_model.`.
    for prefix, own in TOWER_PREFIXES.items():
        if name.startswith(prefix):
            return own + name.removeprefix(prefix)
    return name if name == HEAD else None


def _open(path: Path) -> Iterator[tuple[str, Any]]:
    from safetensors import SafetensorError, safe_open

    # Opening reads the header alone; a slice reads its values when it is indexed.
    try:
        file = safe_open(path, framework="np")
        names = list(file.keys())
        views = [(name, file.get_slice(name)) for name in names]
    except (SafetensorError, OSError, ValueError) as error:
        raise unreadable(path, f"not a whole safetensors file ({error})") from error
    yield from views


def stores_head(folder: Path) -> bool:
    """Whether the weights have an output head apart from the embedding; True without weights."""
    if (folder / SINGLE).is_file():
        names = [name for name, _ in _open(folder / SINGLE)]
    elif (folder / INDEX).is_file():
        names = list(_weight_map(folder))
    else:
        return True
    return any(name.endswith("lm_head.weight") for name in names)


def weight_names(folder: Path) -> list[str]:
    """The files that hold the weights: the single one, else those that the index names."""
    # As in transformers: an index beside the single file is left over from another checkpoint.
    if (folder / INDEX).is_file() and not (folder / SINGLE).is_file():
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
    if weight_names(folder) == [SINGLE]:
        return
    # The other direction, tensors that the index leaves out, is checked when weights are loaded; so
    # is a head that is missing, since only a model that does not tie it needs one.
    for name, shard in _weight_map(folder).items():
        if name.endswith(HEAD) and name not in file_of:
            continue
        if name not in file_of or file_of[name].name != shard:
            raise UserError(f"{folder / shard}: {name} is missing, though {INDEX} says it is here.")
