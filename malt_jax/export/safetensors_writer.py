"""Safetensors files written tensor by tensor, so that no more than one is ever held.

The format is eight bytes of header length, a JSON header with each tensor's dtype, shape and byte
range, and the raw little-endian values. The library's own `save_file` wants every tensor at once.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np

DTYPE_CODES = {
    np.dtype(np.float32): "F32",
    np.dtype(np.float16): "F16",
    np.dtype(ml_dtypes.bfloat16): "BF16",
}


@dataclass(frozen=True)
class Stored:
    """A tensor as it will stand in a file."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def write_file(
    path: Path, tensors: Mapping[str, Stored], produce: Callable[[str], np.ndarray]
) -> None:
    """One safetensors file; `produce(name)` is called once for each tensor, in order."""
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
    text += b" " * (-len(text) % 8)  # values start at a multiple of eight
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, stored in tensors.items():
            value = np.ascontiguousarray(produce(name))
            if value.shape != stored.shape or value.dtype != stored.dtype:
                raise ValueError(f"{name}: {value.dtype}{value.shape} is not as declared: {stored}")
            file.write(value.reshape(-1).view(np.uint8))


def write_checkpoint(
    folder: Path,
    tensors: Mapping[str, Stored],
    produce: Callable[[str], np.ndarray],
    shard_bytes: int,
) -> None:
    """`model.safetensors`, or numbered shards of at most `shard_bytes` and their index.

    A tensor larger than `shard_bytes` gets a shard of its own.
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
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def split_shards(tensors: Mapping[str, Stored], shard_bytes: int) -> Sequence[Sequence[str]]:
    """Consecutive names, filled up to `shard_bytes` each."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, stored in tensors.items():
        if shards[-1] and filled + stored.nbytes > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += stored.nbytes
    return shards
