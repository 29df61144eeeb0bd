"""The reference's log-probabilities: computed once a round, stored, and never mixed up."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from malt_jax.errors import UserError
from malt_jax.models.sharding import to_host
from malt_jax.storage.atomic import write_bytes


@dataclass(frozen=True)
class ReferenceKey:
    """What the numbers depend on, each as a hash."""

    base: str
    """The base model's weights (`Model.fingerprint`)."""
    adapter: str
    """The frozen SFT policy (`weights_hash`)."""
    data: str
    """The pairs' token ids (`examples.digest`)."""
    template: str
    """The role's prompt template."""


def weights_hash(trainable: Any) -> str:
    """SHA-256 over the names, dtypes and bytes of an adapter's or a model's arrays."""
    sha = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_flatten_with_path(trainable)[0]:
        array = to_host(leaf)
        sha.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        sha.update(array.tobytes())
    return sha.hexdigest()


def load_or_compute(path: Path, key: ReferenceKey, compute: Callable[[], np.ndarray]) -> np.ndarray:
    """The stored log-probabilities `[pairs, 2]` (chosen, rejected), or computed and stored now.

    A file made for anything else than `key`, or damaged, is refused, never overwritten or used;
    so are numbers that are not finite.
    """
    if path.exists():
        return load(path, key)
    values = compute()
    if not np.isfinite(values).all():
        raise UserError(
            f"{path.parent}: the reference's log-probabilities hold NaN or infinity for "
            f"{int((~np.isfinite(values)).any(axis=-1).sum())} of {len(values)} pairs, so the "
            "weights it starts from are broken; train the SFT phase with a lower learning rate."
        )
    about = {**dataclasses.asdict(key), "sha256": _digest(values)}
    buffer = io.BytesIO()
    np.savez(buffer, logprobs=values, key=np.array(json.dumps(about)))
    write_bytes(path, buffer.getvalue())
    return values


def load(path: Path, key: ReferenceKey) -> np.ndarray:
    """The stored log-probabilities; UserError names what they were computed with otherwise."""
    try:
        with np.load(path, allow_pickle=False) as file:
            values, stored = file["logprobs"], json.loads(str(file["key"]))
        if stored.pop("sha256") != _digest(values):
            raise ValueError("the numbers are not those that were stored")
    except Exception as error:
        raise UserError(
            f"{path}: cannot be read as reference log-probabilities ({error}); remove it to have "
            "them computed again."
        ) from None
    changed = [name for name, value in dataclasses.asdict(key).items() if stored.get(name) != value]
    if changed:
        raise UserError(
            f"{path}: these reference log-probabilities were computed with another "
            f"{' and another '.join(changed)}; remove the file to have them computed again."
        )
    return values


def _digest(values: np.ndarray) -> str:
    return hashlib.sha256(f"{values.dtype} {values.shape}".encode() + values.tobytes()).hexdigest()
