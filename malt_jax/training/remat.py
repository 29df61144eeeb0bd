"""Rematerialisation: which activations the backward pass finds, and which it computes again."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from malt_jax.models.matmul import PRODUCT
from malt_jax.models.spec import ModelSpec

CPU_KEPT = 1 << 30
"""Bytes of activations kept on a CPU, at most, unless `remat` says otherwise.

Beyond it, computing a layer's elementwise parts again costs no more time than reading them back
from memory (docs/cost.md).
"""

BOUNDED = "bounded"
"""The policy of `auto` on a CPU: `none` within CPU_KEPT, and `dots` for longer rows."""


def resolve(policy: str, backend: str) -> str:
    """The configured policy, with `auto` replaced by the platform's."""
    if policy != "auto":
        return policy
    return BOUNDED if backend == "cpu" else "dots"


def of_shape(policy: str, spec: ModelSpec, tokens: int, itemsize: int) -> str:
    """`none`, `dots` or `full` for a micro-batch of so many tokens."""
    if policy != BOUNDED:
        return policy
    return "none" if kept_bytes(spec, "none", tokens, itemsize) <= CPU_KEPT else "dots"


def kept_bytes(spec: ModelSpec, policy: str, tokens: int, itemsize: int) -> int:
    """Bytes of what the backward pass finds of all layers, by formula.

    With `full` only each layer's input, with `dots` the results of its matrix products as well,
    with `none` what is computed from those too.
    """
    heads, kv = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    products = heads + 2 * kv + 2 * spec.d_model + 2 * spec.active_mlp
    kept = {"full": spec.d_model, "dots": products + spec.d_model, "none": 3 * products}[policy]
    return itemsize * tokens * kept * spec.num_layers


def transform(policy: str) -> Callable | None:
    """The `jax.checkpoint` to put around a layer; None for `none`."""
    if policy == "none":
        return None
    # `full` (no policy) keeps nothing inside a layer.
    return partial(jax.checkpoint, policy=_projections if policy == "dots" else None)


def _projections(primitive: Any, *shapes: Any, **params: Any) -> Any:
    """Whether a value is a projection's result; attention's products are computed again."""
    policies = jax.checkpoint_policies
    if primitive is jax.lax.dot_general_p:
        # A product of integers is a digit of a result, which has a name once it is whole.
        integers = params["preferred_element_type"] == jnp.int32
        return not integers and policies.dots_with_no_batch_dims_saveable(
            primitive, *shapes, **params
        )
    return policies.save_only_these_names(PRODUCT)(primitive, *shapes, **params)
