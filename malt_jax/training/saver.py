"""How a training phase keeps its progress, and whether it has been asked to stop.

A phase is given a `Saver`. `MemorySaver`, the default, keeps nothing beyond the process; that of a
run directory is `storage.checkpoints.CheckpointFolder`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from malt_jax.errors import UserError
from malt_jax.models.lora import Adapter, stack_adapter, unstack_adapter

FINAL = "final"
"""The checkpoint that a finished phase leaves: the best weights."""


@runtime_checkable
class Saver(Protocol):
    """Named checkpoints of one phase: a tree of arrays and JSON facts each."""

    def place(self, name: str) -> str:
        """Where a checkpoint is, for messages."""

    def names(self, prefix: str = "") -> list[str]:
        """The complete checkpoints whose names begin with `prefix`, in alphabetical order."""

    def save(self, name: str, tree: Any, facts: dict[str, Any]) -> None: ...

    def facts(self, name: str) -> dict[str, Any]: ...

    def restore(self, name: str, like: Any) -> Any:
        """The tree, with the shapes, dtypes and shardings of `like`; UserError if it differs."""

    def remove(self, prefix: str, keep: Collection[str] = ()) -> None:
        """Removes the checkpoints whose names begin with `prefix`, except those to `keep`."""

    def references(self, key: Mapping[str, str], compute: Callable[[], np.ndarray]) -> np.ndarray:
        """Reference log-probabilities stored under `key`, or computed and stored now."""

    def stopped_batch(self, record: dict[str, Any]) -> str:
        """Keeps what is known of a batch that stopped the training; returns where."""

    def save_due(self) -> bool:
        """Whether so much time has passed since the last checkpoint that another one is due."""

    def stop_requested(self) -> bool: ...

    def raise_if_stopped(self) -> None: ...


class MemorySaver:
    """Keeps checkpoints in memory, for as long as the phase runs."""

    def __init__(self) -> None:
        self._kept: dict[str, tuple[Any, dict[str, Any]]] = {}

    def place(self, name: str) -> str:
        return f"the checkpoint {name!r} in memory"

    def names(self, prefix: str = "") -> list[str]:
        return sorted(name for name in self._kept if name.startswith(prefix))

    def save(self, name: str, tree: Any, facts: dict[str, Any]) -> None:
        # A copy, because the next step is given the arrays' buffers.
        self._kept[name] = (jax.tree.map(jnp.copy, tree), facts)

    def facts(self, name: str) -> dict[str, Any]:
        return self._kept[name][1]

    def restore(self, name: str, like: Any) -> Any:
        return jax.tree.map(jnp.copy, self._kept[name][0])

    def remove(self, prefix: str, keep: Collection[str] = ()) -> None:
        for name in self.names(prefix):
            if name not in keep:
                del self._kept[name]

    def references(self, key: Mapping[str, str], compute: Callable[[], np.ndarray]) -> np.ndarray:
        # Nothing here outlives the process, so no stored numbers could belong to another key.
        return compute()

    def stopped_batch(self, record: dict[str, Any]) -> str:
        return f"examples {', '.join(record['ids'])}"

    def save_due(self) -> bool:
        return False

    def stop_requested(self) -> bool:
        return False

    def raise_if_stopped(self) -> None:
        return None


def save_weights(saver: Saver, name: str, weights: Any, facts: dict[str, Any]) -> None:
    """Saves an adapter or full weights; an adapter's scale is kept with it."""
    if isinstance(weights, Adapter):
        kind = {"kind": "adapter", "scale": weights.scale}
        # Always saved stacked, so that either kind of decoder can read it.
        saver.save(name, stack_adapter(weights), {**facts, **kind})
    else:
        saver.save(name, weights, {**facts, "kind": "full"})


def load_weights(saver: Saver, name: str, like: Any) -> Any:
    """What `save_weights` saved, in the form of `like`: adapter or full, stacked or not.

    Training saves float32 masters whatever the model computes in, so that is the dtype of what is
    restored, and not that of `like`.
    """
    found = saver.facts(name)
    expected = "adapter" if isinstance(like, Adapter) else "full"
    if found["kind"] != expected:
        raise UserError(
            f"{saver.place(name)}: holds {found['kind']} weights, expected {expected} ones; set "
            "`train.full` to what it was trained with."
        )
    if not isinstance(like, Adapter):
        return saver.restore(name, masters_like(like))
    # The factors alone do not say what they add to the base: their product is scaled.
    if abs(found["scale"] - like.scale) > 1e-9:
        raise UserError(
            f"{saver.place(name)}: its adapter is scaled by {found['scale']}, this config's by "
            f"{like.scale}; set `train.lora` to what it was trained with."
        )
    adapter = saver.restore(name, masters_like(stack_adapter(like)))
    return adapter if like.stacked else unstack_adapter(adapter)


def masters_like(weights: Any) -> Any:
    """Shapes and shardings of the float32 masters that training keeps of `weights`."""

    def master(leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, jnp.float32, sharding=leaf.sharding)

    return jax.tree.map(master, weights)
