"""Reference log-probabilities: the key they are stored under, and a check of what they hold."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from malt_jax.errors import UserError
from malt_jax.models.lora import Adapter
from malt_jax.models.sharding import to_host
from malt_jax.training.dataset import digest
from malt_jax.training.step import Trainable


def reference_key(
    base: str, policy: Trainable, examples: Sequence[Any], further: Any = None
) -> dict[str, str]:
    """Everything that the log-probabilities of `policy` for the examples depend on, as hashes.

    `base`: the base model's fingerprint. `further`: what was scored besides the examples.
    """
    data = digest(examples)
    if further is not None:
        data = hashlib.sha256(f"{data} {further!r}".encode()).hexdigest()
    return {"base": base, "adapter": weights_hash(policy), "data": data}


def finite(logprobs: np.ndarray, what: str) -> np.ndarray:
    """The log-probabilities, one row for each of `what`; raises UserError if one is not finite."""
    if broken := int((~np.isfinite(logprobs)).any(axis=-1).sum()):
        raise UserError(
            f"the reference's log-probabilities hold NaN or infinity for {broken} of "
            f"{len(logprobs)} {what}: the weights that this phase starts from are broken; train "
            "the phase before it with a lower learning rate."
        )
    return logprobs


def weights_hash(trainable: Any) -> str:
    """SHA-256 of a model's or an adapter's arrays (names, dtypes, bytes), and of its scale."""
    sha = hashlib.sha256()
    if isinstance(trainable, Adapter):
        sha.update(f"scale {trainable.scale}".encode())
    for path, leaf in jax.tree_util.tree_flatten_with_path(trainable)[0]:
        # The whole array, so that the hash does not depend on how devices share it.
        array = to_host(leaf)
        sha.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        sha.update(array.tobytes())
    return sha.hexdigest()
