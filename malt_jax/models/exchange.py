"""Several models on one device: together where they fit, else one at a time."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Sequence
from typing import Any

import jax
from flax import nnx

from malt_jax.memory import host_memory
from malt_jax.models.checkpoint import Checkpoint
from malt_jax.models.mesh import WEIGHT_SHARE, device_memory
from malt_jax.models.model import Model
from malt_jax.models.weights import load_params


def fit_together(weights: Sequence[int], memory: int | None) -> bool:
    """Whether models of so many bytes leave half of a device's memory for caches and activations.

    That is the share by which a mesh is chosen as well. An unknown memory holds all of them.
    """
    return memory is None or sum(weights) <= WEIGHT_SHARE * memory


def memory_here() -> int | None:
    """Bytes of memory of a device of this machine; on a CPU the machine's."""
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        return host_memory()
    return device_memory(device)


class Exchange:
    """Holds the weights of one of several models, the one that was asked for last."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._holder: Model | None = None
        self._params: nnx.State | None = None
        self.loads = 0
        """How often weights were read."""

    def add(self, load: Callable[[], Model], quantize: str) -> Model:
        """The model that `load` reads, whose weights are freed when another's are asked for."""
        with self._lock:
            self._free()
            loaded = load()
            model = ExchangedModel(loaded, self, quantize)
            self._holder, self._params = model, loaded.params
            self.loads += 1
            return model

    def params_of(self, model: ExchangedModel) -> nnx.State:
        """The weights of a model, read again unless it was the last one."""
        # Two streams of a sampler may ask at the same time.
        with self._lock:
            if self._holder is not model or self._params is None:
                self._free()
                self._params = model.read_again()
                self._holder = model
                self.loads += 1
            return self._params

    def _free(self) -> None:
        self._holder = self._params = None
        # Caches and training states that died in a cycle may still refer to the weights.
        gc.collect()


class ExchangedModel(Model):
    """A model whose weights are on the device only while no other one's are asked for."""

    def __init__(self, model: Model, exchange: Exchange, quantize: str):
        # All but the weights, past the frozen fields; `params` below takes their place.
        facts: dict[str, Any] = {k: v for k, v in vars(model).items() if k != "params"}
        vars(self).update(facts, _exchange=exchange, _dtype=model.dtype, _quantize=quantize)

    @property
    def dtype(self) -> Any:
        # Known without the weights, which would have to be read.
        return vars(self)["_dtype"]

    @property
    def params(self) -> nnx.State:
        """The weights, which nobody may keep beyond the call that needs them."""
        exchange: Exchange = vars(self)["_exchange"]
        return exchange.params_of(self)

    def read_again(self) -> nnx.State:
        """The weights, from the files that the model was loaded from."""
        own = vars(self)
        checkpoint = Checkpoint(self.folder, tower=self.spec.tower)
        _, params = load_params(
            checkpoint, self.spec, self.dtype, stacked=self.spec.stacks_layers,
            quantize=own["_quantize"],
        )  # fmt: skip
        return params
