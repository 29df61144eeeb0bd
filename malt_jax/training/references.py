"""The key of stored reference log-probabilities: hashes of all they depend on."""

from __future__ import annotations

import hashlib
from typing import Any

import jax

from malt_jax.models.sharding import to_host


def reference_key(*, base: str, policy: Any, data: str, template: str) -> dict[str, str]:
    """Everything the numbers depend on, as hashes.

    `base`: the base model's fingerprint. `policy`: the frozen SFT policy itself. `data`: the digest
    of the pairs' token ids. `template`: the role's prompt template.
    """
    return {
        "base": base,
        "adapter": weights_hash(policy),
        "data": data,
        "template": hashlib.sha256(template.encode()).hexdigest(),
    }


def weights_hash(trainable: Any) -> str:
    """SHA-256 over the names, dtypes and bytes of an adapter's or a model's arrays."""
    sha = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_flatten_with_path(trainable)[0]:
        # The whole array, so that the hash does not depend on how devices share it.
        array = to_host(leaf)
        sha.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        sha.update(array.tobytes())
    return sha.hexdigest()
