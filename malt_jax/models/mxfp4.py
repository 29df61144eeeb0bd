"""MXFP4 weights (OCP Microscaling Formats 1.0), the storage of gpt-oss' experts, in plain numbers.

A block of 32 values shares one power of two. A value has four bits: sign, two bits of exponent, one
of mantissa. Blocks lie along the inputs of a projection: `blocks` is `[expert, out, in / 32, 16]`
bytes of two values each, the low half first, and `scales` is `[expert, out, in / 32]` exponents
with a bias of 127. Every value is exact in bfloat16.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

BLOCKS, SCALES = "_blocks", "_scales"
BLOCK = 32
VALUES = np.asarray([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
VALUES = np.concatenate([VALUES, -VALUES])


def fit(blocks: tuple[int, ...], scales: tuple[int, ...] | None) -> bool:
    """Whether these are the shapes of blocks and their scales."""
    return len(blocks) == 4 and blocks[-1] == BLOCK // 2 and scales == blocks[:-1]


class Mxfp4:
    """A tensor `[expert, in, out]` in bfloat16, which is computed slice by slice as it is read."""

    def __init__(self, blocks: Any, scales: Any):
        self.blocks, self.scales = blocks, scales

    def get_shape(self) -> list[int]:
        experts, outputs, blocks, _ = self.blocks.get_shape()
        return [experts, BLOCK * blocks, outputs]

    def get_dtype(self) -> str:
        stored = {self.blocks.get_dtype(), self.scales.get_dtype()}
        return "BF16" if stored == {"U8"} else " and ".join(sorted(stored))

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        expert, inputs, outputs = (*index, *[slice(None)] * (3 - len(index)))
        # Whole blocks are read, and what they hold beyond the slice is cut off.
        first, end, _ = inputs.indices(self.get_shape()[1])
        covered = slice(first // BLOCK, -(-end // BLOCK))
        values = dequantised(
            self.blocks[expert, outputs, covered], self.scales[expert, outputs, covered]
        )
        start = first - covered.start * BLOCK
        return values[..., start : start + end - first].swapaxes(1, 2)


def dequantised(blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """`[..., n, 16]` bytes and `[..., n]` scales as `[..., 32 n]` numbers."""
    values = VALUES[np.stack([blocks & 15, blocks >> 4], axis=-1)]
    values = values.reshape(*scales.shape, BLOCK)
    values = np.ldexp(values, scales.astype(np.int32)[..., None] - 127)
    return values.reshape(*scales.shape[:-1], -1).astype(ml_dtypes.bfloat16)
