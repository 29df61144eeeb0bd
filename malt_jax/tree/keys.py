"""Random keys that depend on what is sampled and on nothing else.

A node's key is a hash of the seed and its path, so its randomness does not change with the batch
it is sampled in, the order of the questions, or the number of processes.
"""

from __future__ import annotations

import hashlib

import numpy as np


def node_key(seed: int, *path: str | int) -> np.ndarray:
    """A threefry key, uint32 `[2]`, for a path such as `(seed, "search", 0, "Q17/g2/v0")`."""
    # Little-endian on every machine.
    return np.frombuffer(_digest(seed, *path), "<u4")


def draw_order(seed: int, count: int, *path: str | int) -> list[int]:
    """A permutation of `range(count)` that depends on the seed and the path only."""
    number = int.from_bytes(_digest(seed, *path), "little")
    return np.random.default_rng(number).permutation(count).tolist()


def _digest(*path: str | int) -> bytes:
    # A control character that names do not hold, so ("a", "bc") and ("ab", "c") differ.
    text = "\x1f".join(map(str, path))
    # A lone surrogate, which JSON may hold, has no UTF-8; it is written out instead.
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).digest()[:8]
