"""The weights that a policy starts training from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from malt_jax.config.lora import LoraConfig
from malt_jax.data.role_data import policy_name
from malt_jax.models.lora import Adapter, adapter_shardings, init_adapter, is_stacked
from malt_jax.models.spec import ModelSpec
from malt_jax.training.fit import BaseModel
from malt_jax.training.step import Trainable
from malt_jax.tree.keys import node_key


def initial_weights(
    model: BaseModel,
    lora: LoraConfig | None = None,
    *,
    full: bool = False,
    seed: int = 0,
    name: str = "",
    mesh: Mesh | None = None,
) -> Trainable:
    """A LoRA adapter that changes nothing yet, or with `full` the base model's own weights.

    Every policy `name` draws its adapter with a key of its own.
    """
    if full:
        # Not copied: a training state copies the weights that it begins with.
        return model.params
    # A hash of seed and name, so that all processes draw the same adapter.
    key = jax.random.wrap_key_data(jnp.asarray(node_key(seed, "adapter", name)))
    adapter = init_adapter(model.spec, lora or LoraConfig(), key, stacked=is_stacked(model.params))
    return place_adapter(adapter, model.spec, mesh)


def place_adapter(adapter: Adapter, spec: ModelSpec, mesh: Mesh | None) -> Adapter:
    """An adapter of a model on the devices of a mesh; as it is without one."""
    if mesh is None:
        return adapter
    return jax.device_put(adapter, adapter_shardings(spec, adapter, mesh))


def start_by_policy(
    start: Mapping[str, Trainable], known: Sequence[str], sharing: str
) -> dict[str, Trainable]:
    """The weights to continue from, by policy as well as by role.

    Raises ValueError for a name that is not known, and where roles that share one policy are given
    different weights.
    """
    if unknown := sorted(start.keys() - set(known)):
        names = ", ".join(dict.fromkeys(known))
        raise ValueError(f"start: found {', '.join(unknown)}, allowed: {names}")
    found = dict(start)
    for role, weights in start.items():
        if found.setdefault(policy := policy_name(role, sharing), weights) is not weights:
            raise ValueError(
                f"start: found different weights for {policy}, the policy of all roles"
            )
    return found
