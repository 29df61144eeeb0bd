"""Load balance of a mixture's experts: whether training has left some of them without tokens."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from malt_jax.data.examples import Example
from malt_jax.models.lora import Adapter
from malt_jax.models.sharding import on_mesh, to_host

SEQUENCES, TOKENS = 16, 256
"""What the balance is measured on, at most: sequences, and tokens of each."""


def expert_balance(
    model: Any, weights: Adapter | nnx.State, examples: Sequence[Example], mesh: Mesh | None = None
) -> dict[str, float]:
    """How evenly a policy's experts are loaded on some of its examples; {} without experts.

    `expert_load_max`: the tokens of the fullest expert of any layer, as a multiple of an even
    share, which is 1. `experts_unused`: share of all experts that no token chose.
    """
    mixture = model.spec.mixture
    if mixture is None or not examples:
        return {}
    few = [(*e.prompt_ids, *e.completions[0]) for e in examples[:SEQUENCES]]
    # All as long as the shortest, because padding would count as tokens.
    length = min(TOKENS, *map(len, few))
    tokens = np.array([ids[:length] for ids in few], np.int32)
    with on_mesh(mesh):
        load = to_host(_load(model.graph, model.params, weights, tokens))
    even = mixture.chosen / mixture.experts
    return {
        "expert_load_max": float(load.max() / even),
        "experts_unused": float((load == 0).mean()),
    }


@partial(jax.jit, static_argnums=0)
def _load(
    graph: nnx.GraphDef, params: nnx.State, weights: Any, tokens: Int[Array, "B T"]
) -> Float[Array, "L E"]:
    adapter = weights if isinstance(weights, Adapter) else None
    if adapter is None:
        params = jax.tree.map(lambda x, like: x.astype(like.dtype), weights, params)
    return nnx.merge(graph, params).expert_load(tokens, adapter).astype(jnp.float32)
