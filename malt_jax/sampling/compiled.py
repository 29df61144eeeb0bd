"""Programs compiled ahead of time, counted, and kept on disk between runs."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from weakref import WeakSet

import jax

from malt_jax.sampling.stats import Stats


class Programs:
    """Executables by name and shape. What is not in here is never run, so their number is known.

    Streams, each in a thread of its own, give the device work in turns: one at a time has `turn`.
    """

    def __init__(self, stats: Stats):
        self._programs: dict[Hashable, Any] = {}
        self._stats = stats
        self.turn = threading.RLock()
        self.users: WeakSet[Any] = WeakSet()
        """Whatever has work on the device, each with a `wait` method."""

    def get(
        self, key: Hashable, function: Callable, donate: tuple[int, ...], args: tuple[Any, ...]
    ) -> Any:
        """The executable of `function` for arguments of these shapes, compiled on first need."""
        if key not in self._programs:
            with self.idle():
                started = time.perf_counter()
                lowered = jax.jit(function, donate_argnums=donate).lower(*args)
                self._programs[key] = lowered.compile()
                self._stats.add(compile_seconds=time.perf_counter() - started, executables=1)
        return self._programs[key]

    @contextmanager
    def idle(self) -> Iterator[None]:
        """The device has nothing to do and gets nothing, so that it is safe to compile.

        XLA's CPU compiler was seen to hang for good while a program was still running: both wait
        for threads of the one pool.
        """
        with self.turn:
            for user in list(self.users):
                user.wait()
            yield


def use_cache_dir(folder: str | None) -> None:
    """Turn on JAX's persistent compilation cache, unless the user's environment already did."""
    if folder is None or jax.config.jax_compilation_cache_dir:
        return
    if folder == "auto":
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = str(Path(base) / "malt-jax" / "programs")
    jax.config.update("jax_compilation_cache_dir", folder)
    # All programs, also the small ones of training and evaluation: a second run compiles nothing.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
