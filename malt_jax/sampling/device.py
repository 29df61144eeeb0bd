"""The device's side of a run: its caches, and the executables that work on them."""

from __future__ import annotations

import functools
import os
import threading
import time
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any
from weakref import WeakSet

import jax
import jax.numpy as jnp
import numpy as np

from malt_jax.memory import release_freed
from malt_jax.models.spec import ModelSpec
from malt_jax.sampling import cache
from malt_jax.sampling.decode import ChunkOutput, DecodeInputs, DecodeProgram, Rows, decode
from malt_jax.sampling.memory import CacheShape
from malt_jax.sampling.prefill import CopyCall, PrefillCall, Weights, prefill
from malt_jax.sampling.scheduler import Scheduler
from malt_jax.sampling.stats import Stats

COMPILER_OPTIONS: dict[str, dict[str, str | bool]] = {
    # By default XLA's GPU compiler joins products of one input into one, and for that writes the
    # weights of a projection and of its adapter side by side in every decode step.
    "gpu": {"xla_gpu_dot_merger_threshold_mb": "0"},
}
"""Options that the sampler's programs are compiled with, by platform."""


class Executables:
    """Programs compiled ahead of time, by name and shapes.

    Nothing else is run, so that their number is known. In `Sampler.sample` each stream has a thread
    of its own, and only the one that holds `dispatch_lock` may dispatch work; an open call drives
    its streams from one thread.
    """

    def __init__(self, stats: Stats):
        self._executables: dict[Hashable, Any] = {}
        self._stats = stats
        self.dispatch_lock = threading.RLock()
        self.users: WeakSet[Device] = WeakSet()
        """Devices that may have work in flight."""

    def get(
        self,
        key: Hashable,
        function: Callable,
        args: tuple[Any, ...],
        static: tuple[Hashable, ...] = (),
        donate: tuple[int, ...] = (),
    ) -> Any:
        """The executable of `function` for arguments of these shapes, compiled on first need.

        `static`: what is compiled in, and precedes the arguments. `donate` counts the arguments.
        """
        if key not in self._executables:
            with self.dispatch_lock:
                # The device must have nothing to do and get nothing meanwhile. XLA's CPU compiler
                # was seen to hang for good while a program was still running: both wait for threads
                # of the one pool.
                for user in list(self.users):
                    user.wait()
                started = time.perf_counter()
                lowered = _jitted(function, len(static), donate).lower(*static, *args)
                options = COMPILER_OPTIONS.get(jax.default_backend())
                self._executables[key] = lowered.compile(compiler_options=options)
                self._stats.add(compile_seconds=time.perf_counter() - started, executables=1)
        return self._executables[key]


@functools.cache
def _jitted(function: Callable, static: int, donate: tuple[int, ...]) -> Any:
    """`jax.jit` of a function, once, so that JAX finds what it has traced and compiled before.

    Samplers of equal models in one process then share their programs.
    """
    donated = tuple(static + number for number in donate)
    return jax.jit(function, static_argnums=tuple(range(static)), donate_argnums=donated)


class Device:
    """The caches of one run. Work is dispatched and not waited for, except in `result`."""

    def __init__(
        self,
        executables: Executables,
        program: DecodeProgram,
        weights: Weights,
        spec: ModelSpec,
        cache_dtype: Any,
        shape: CacheShape,
    ):
        self.shape = shape
        self._executables, self._program, self._weights = executables, program, weights
        layout = program.attention.layout
        static: tuple[Any, ...] = (spec, shape, jnp.dtype(cache_dtype), layout)
        # The C library would keep a freed cache, which is in pieces, beside the new one.
        release_freed()
        with executables.dispatch_lock:
            make = executables.get(("caches", shape), cache.empty_caches, (), static)
            self._prefix, self._suffix = make()
            executables.users.add(self)
        self._cursor = np.int32(0)
        adapter, structure = jax.tree.flatten(weights.adapter)
        dtypes = frozenset(x.dtype for x in jax.tree.leaves(weights.params))
        self._like = (structure, dtypes, *((x.shape, x.dtype) for x in adapter))
        """What an executable depends on, besides the shapes of caches and calls."""

    def prefill(self, call: CopyCall | PrefillCall) -> None:
        """Copies shared prefixes, or computes chunks of prompts."""
        prefixes = (self.shape.entries, self.shape.prefix_tokens)
        static: tuple[Hashable, ...] = ()
        with self._executables.dispatch_lock:
            if isinstance(call, CopyCall):
                function: Callable = cache.copy_entries
                key: Hashable = ("copy", prefixes)
                args: tuple[Any, ...] = (self._prefix, *call)
            else:
                function, static = prefill, (self._program.graph,)
                key = ("prefill", call.tokens.shape, prefixes, self._like)
                args = (self._prefix, self._weights, call)
            self._prefix = self._executables.get(key, function, args, static, (0,))(*args)

    def decode(self, scheduler: Scheduler, idle_limit: int) -> None:
        """Decodes a chunk of steps."""
        queue, params = scheduler.queue(), scheduler.param_arrays
        key = ("decode", self.shape, self._like, params.thought is None, len(scheduler.params))
        with self._executables.dispatch_lock:
            inputs = DecodeInputs(self._prefix, queue, params, np.int32(idle_limit))
            args = (self._weights, inputs, self._suffix, scheduler.rows, self._cursor)
            run = self._executables.get(key, decode, args, (self._program,), donate=(2,))
            self._suffix, self._rows, self._output, self._cursor = run(*args)

    def resize(self, shape: CacheShape, entries: np.ndarray, rows: np.ndarray) -> None:
        """Continues in a smaller or larger shape, with these entries and rows."""
        same_entries = shape.entries == self.shape.entries
        numbers = (entries.astype(np.int32), rows.astype(np.int32))
        key = ("resize", self.shape, shape)
        # Layer by layer, so that never more than one layer is there twice.
        with self._executables.dispatch_lock:
            for part in (slice(i, i + 1) for i in range(len(self._suffix))):
                prefix = None if same_entries else self._prefix[part]
                args = (prefix, self._suffix[part], *numbers)
                prefix, self._suffix[part] = self._executables.get(key, cache.resize, args)(*args)
                if not same_entries:
                    self._prefix[part] = prefix
        self.shape = shape

    def wait(self) -> None:
        """Waits until the device has done all that it was given."""
        jax.block_until_ready((self._prefix, self._suffix))

    def idle(self) -> bool:
        """Whether the device has done all that it was given."""
        return self._prefix[0][0].is_ready() and self._suffix[0][0].is_ready()

    def result(self) -> tuple[Rows, ChunkOutput]:
        """Waits for the last chunk."""
        return jax.device_get((self._rows, self._output))


def use_cache_dir(folder: str | None) -> None:
    """Turns on JAX's persistent compilation cache, unless the user's environment already did."""
    if folder is None or jax.config.values["jax_compilation_cache_dir"]:
        return
    if folder == "auto":
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = str(Path(base) / "malt-jax" / "programs")
    jax.config.update("jax_compilation_cache_dir", folder)
    # All programs, also the small ones of training and evaluation: a second run compiles nothing.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
