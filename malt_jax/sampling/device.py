"""One run's caches on the device, and the executables that work on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from malt_jax.models.lora import Adapter
from malt_jax.models.spec import ModelSpec
from malt_jax.sampling import cache, programs
from malt_jax.sampling.compiled import Programs
from malt_jax.sampling.memory import Shapes
from malt_jax.sampling.pool import Pool
from malt_jax.sampling.prefill import Extend, Fork
from malt_jax.sampling.request import MAX_END_IDS


class Device:
    """Caches of `shapes`. Every call is dispatched at once; `result` waits for the last decode."""

    def __init__(
        self,
        compiled: Programs,
        graph: nnx.GraphDef,
        params: Any,
        spec: ModelSpec,
        adapter: Adapter | None,
        shapes: Shapes,
        cache_dtype: Any,
        chunk_steps: int,
        end_ids: Sequence[int] = (),
    ):
        self.shapes = shapes
        self._compiled, self._graph, self._chunk = compiled, graph, chunk_steps
        self._params, self._adapter = params, adapter
        with compiled.idle_at_first(("caches", shapes, cache_dtype)):
            self._prefix = _allocate(spec, shapes.slots, shapes.places, cache_dtype)
            self._suffix = _allocate(spec, shapes.slots * shapes.width, shapes.ring, cache_dtype)
            compiled.users.add(self)
        self._clock = np.int32(0)
        self._end_ids = np.full(MAX_END_IDS, -1, np.int32)
        self._end_ids[: len(end_ids)] = end_ids
        leaves, structure = jax.tree.flatten(adapter)
        self._like = (structure, *((x.shape, x.dtype) for x in leaves))

    def prefill(self, call: Fork | Extend) -> None:
        """Copy heads, or grow prompts: `programs.fork` or `programs.extend`."""
        with self._compiled.turn:
            if isinstance(call, Fork):
                function, args, donate = programs.fork, (self._prefix, *call), 0
                key = ("fork", self.shapes)
            else:
                function = partial(programs.extend, self._graph)
                args, donate = (self._params, self._adapter, self._prefix, *call), 2
                key = ("extend", call.tokens.shape, self.shapes, self._like)
            self._prefix = self._compiled.get(key, function, (donate,), args)(*args)

    def decode(self, pool: Pool, enough: int) -> None:
        """Decode a chunk: `programs.decode`."""
        function = partial(programs.decode, self._graph, self._chunk)
        key, plan = ("decode", self.shapes, self._like), pool.plan()
        with self._compiled.turn:
            caches = (self._params, self._adapter, self._prefix, self._suffix)
            args = (*caches, pool.rows, plan, self._end_ids, self._clock, np.int32(enough))
            program = self._compiled.get(key, function, (3,), args)
            self._suffix, self._rows, self._log, self._clock = program(*args)

    def shrink(self, kept: np.ndarray) -> None:
        """Go on with some of the slots."""
        width = self.shapes.width
        rows = (kept[:, None] * width + np.arange(width)).reshape(-1)
        key = ("shrink", self.shapes, len(kept))
        with self._compiled.turn:
            args = (self._prefix, self._suffix, kept.astype(np.int32), rows.astype(np.int32))
            program = self._compiled.get(key, programs.shrink, (), args)
            self._prefix, self._suffix = program(*args)
        self.shapes = replace(self.shapes, slots=len(kept))

    def wait(self) -> None:
        """Until the device has done all it was given."""
        jax.block_until_ready((self._prefix, self._suffix))

    def ready(self) -> bool:
        """Whether the device has done all it was given."""
        return self._prefix[0].k.is_ready() and self._suffix[0].k.is_ready()

    def result(self) -> tuple[programs.Rows, programs.Log]:
        return jax.device_get((self._rows, self._log))


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _allocate(spec: ModelSpec, count: int, places: int, dtype: Any) -> list[cache.KV]:
    return programs.laid_out(cache.empty(spec, count, places, jnp.dtype(dtype)))
