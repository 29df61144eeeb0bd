"""Safetensors checkpoints written tensor by tensor, so that one tensor at a time is in memory.

The format (https://huggingface.co/docs/safetensors) is eight bytes of header length, a JSON header
with each tensor's dtype, shape and byte range, and the raw little-endian values. The library's own
`save_file` takes all tensors of a file at once.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

DTYPE_CODES = {
    np.dtype(np.float32): "F32",
    np.dtype(np.float16): "F16",
    np.dtype(ml_dtypes.bfloat16): "BF16",
}


@dataclass(frozen=True)
class Stored:
    """Shape and dtype of a tensor in a file."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def write_file(
    path: Path, tensors: Mapping[str, Stored], produce: Callable[[str], np.ndarray]
) -> None:
    """Writes one safetensors file; `produce(name)` is called once for each tensor, in order."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, stored in tensors.items():
        header[name] = {
            "dtype": DTYPE_CODES[stored.dtype],
            "shape": list(stored.shape),
            "data_offsets": [offset, offset + stored.nbytes],
        }
        offset += stored.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # readers map the file, so values start at a multiple of 8
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, stored in tensors.items():
            # A transposed view is not contiguous, and the file needs the values row by row.
            value = np.ascontiguousarray(produce(name))
            if value.shape != stored.shape or value.dtype != stored.dtype:
                raise ValueError(f"{name}: {value.dtype}{value.shape} is not as declared: {stored}")
            # As bytes, because bfloat16 is no type of Python's buffers.
            file.write(value.reshape(-1).view(np.uint8).data)


def write_checkpoint(
    folder: Path,
    tensors: Mapping[str, Stored],
    produce: Callable[[str], np.ndarray],
    shard_bytes: int,
) -> None:
    """Writes model.safetensors, or numbered files of at most `shard_bytes` with their index.

    A tensor larger than `shard_bytes` gets a file of its own.
    """
    shards = split_shards(tensors, shard_bytes)
    if len(shards) == 1:
        write_file(folder / "model.safetensors", tensors, produce)
        return
    weight_map = {}
    for i, names in enumerate(shards, start=1):
        file_name = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        write_file(folder / file_name, {name: tensors[name] for name in names}, produce)
        weight_map.update(dict.fromkeys(names, file_name))
    total = sum(stored.nbytes for stored in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    write_config(folder / "model.safetensors.index.json", index)


def write_config(path: Path, values: Mapping[str, Any]) -> None:
    """Writes a JSON file of a checkpoint."""
    text = json.dumps(values, indent=2, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def split_shards(tensors: Mapping[str, Stored], shard_bytes: int) -> Sequence[Sequence[str]]:
    """Splits the names, in order, into files of at most `shard_bytes`."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, stored in tensors.items():
        # An empty file takes any tensor, also one that is larger than the limit.
        if shards[-1] and filled + stored.nbytes > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += stored.nbytes
    return shards
