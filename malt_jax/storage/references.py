"""Reference log-probabilities on disk: an .npz file that says what they were computed with."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from malt_jax.errors import UserError
from malt_jax.storage.atomic import write_bytes


def load_or_compute(
    path: Path, key: Mapping[str, str], compute: Callable[[], np.ndarray]
) -> np.ndarray:
    """The stored log-probabilities, or computed and stored now.

    One row per pair (`[pairs, 2]`: chosen, rejected), completion or token (`[N, 1]`). A file that
    was made for another key, or is damaged, is refused, never overwritten or used.
    """
    if path.exists():
        return load(path, key)
    values = compute()
    # The key says what the numbers were computed with, the hash that they are still the same ones.
    about = {**key, "sha256": _digest(values)}
    buffer = io.BytesIO()
    np.savez(buffer, logprobs=values, key=np.array(json.dumps(about)))
    write_bytes(path, buffer.getvalue())
    return values


def load(path: Path, key: Mapping[str, str]) -> np.ndarray:
    """The stored log-probabilities; UserError names what they were computed with otherwise."""
    try:
        # Without pickles, which could run code of whoever wrote the file.
        with np.load(path, allow_pickle=False) as file:
            values, stored = file["logprobs"], json.loads(str(file["key"]))
        if stored.pop("sha256") != _digest(values):
            raise ValueError("the numbers are not those that were stored")
    except Exception as error:
        raise UserError(
            f"{path}: cannot be read as reference log-probabilities ({error}); remove it to have "
            "them computed again."
        ) from None
    changed = [name for name, value in key.items() if stored.get(name) != value]
    if changed:
        raise UserError(
            f"{path}: these reference log-probabilities were computed with another "
            f"{' and another '.join(changed)}; remove the file to have them computed again."
        )
    return values


def _digest(values: np.ndarray) -> str:
    return hashlib.sha256(f"{values.dtype} {values.shape}".encode() + values.tobytes()).hexdigest()
