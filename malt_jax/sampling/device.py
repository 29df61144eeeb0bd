"""One run's caches on the device, and the executables that work on them."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import numpy as np
from flax import nnx

from malt_jax.models.lora import Adapter
from malt_jax.models.spec import ModelSpec
from malt_jax.sampling import programs
from malt_jax.sampling.compiled import Programs
from malt_jax.sampling.memory import Shapes
from malt_jax.sampling.pool import Pool
from malt_jax.sampling.prefill import Extend, Fork


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
    ):
        self.shapes = shapes
        self._compiled, self._graph, self._chunk = compiled, graph, chunk_steps
        self._params, self._adapter = params, adapter
        make = partial(programs.caches, spec, shapes, cache_dtype)
        with compiled.turn:
            make = compiled.get(("caches", shapes, cache_dtype), make, (), ())
            self._prefix, self._suffix = make()
            compiled.users.add(self)
        self._clock = np.int32(0)
        leaves, structure = jax.tree.flatten(adapter)
        self._like = (structure, *((x.shape, x.dtype) for x in leaves))

    def prefill(self, call: Fork | Extend) -> None:
        """Copy heads, or grow prompts: `programs.fork` or `programs.extend`."""
        prefixes = (self.shapes.slots, self.shapes.places)
        with self._compiled.turn:
            if isinstance(call, Fork):
                function, args, donate = programs.fork, (self._prefix, *call), 0
                key = ("fork", *prefixes)
            else:
                function = partial(programs.extend, self._graph)
                args, donate = (self._params, self._adapter, self._prefix, *call), 2
                key = ("extend", call.tokens.shape, *prefixes, self._like)
            self._prefix = self._compiled.get(key, function, (donate,), args)(*args)

    def decode(self, pool: Pool, enough: int) -> None:
        """Decode a chunk: `programs.decode`."""
        function = partial(programs.decode, self._graph, self._chunk, self.shapes.width)
        key = ("decode", self.shapes, self._like)
        work = (pool.rows, pool.waiting(), pool.how, self._clock, np.int32(enough))
        with self._compiled.turn:
            args = (self._params, self._adapter, self._prefix, self._suffix, *work)
            program = self._compiled.get(key, function, (3,), args)
            self._suffix, self._rows, self._log, self._clock = program(*args)

    def shrink(self, shapes: Shapes, slots: np.ndarray, rows: np.ndarray) -> None:
        """Go on in smaller shapes, with these slots and rows."""
        whole = shapes.slots == self.shapes.slots
        key = ("shrink", self.shapes, shapes)
        with self._compiled.turn:
            prefix = None if whole else self._prefix
            args = (prefix, self._suffix, slots.astype(np.int32), rows.astype(np.int32))
            prefix, self._suffix = self._compiled.get(key, programs.shrink, (), args)(*args)
            self._prefix = self._prefix if whole else prefix
        self.shapes = shapes

    def wait(self) -> None:
        """Until the device has done all it was given."""
        jax.block_until_ready((self._prefix, self._suffix))

    def ready(self) -> bool:
        """Whether the device has done all it was given."""
        return self._prefix[0].k.is_ready() and self._suffix[0].k.is_ready()

    def result(self) -> tuple[programs.Rows, programs.Log]:
        return jax.device_get((self._rows, self._log))
