"""Programs compiled ahead of time, counted, and kept on disk between runs."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

import jax

from malt_jax.sampling.stats import Stats


class Programs:
    """Executables by name and shape. What is not in here is never run, so their number is known."""

    def __init__(self, stats: Stats):
        self._programs: dict[Hashable, Any] = {}
        self._stats = stats

    def get(
        self, key: Hashable, function: Callable, donate: tuple[int, ...], args: tuple[Any, ...]
    ) -> Any:
        """The executable of `function` for arguments of these shapes, compiled on first need."""
        if key not in self._programs:
            # XLA's CPU compiler was seen to hang for good while a program was still running: both
            # wait for threads of the one pool.
            jax.block_until_ready(args)
            started = time.perf_counter()
            lowered = jax.jit(function, donate_argnums=donate).lower(*args)
            self._programs[key] = lowered.compile()
            self._stats.compile_seconds += time.perf_counter() - started
            self._stats.executables = len(self._programs)
        return self._programs[key]


def use_cache_dir(folder: str | None) -> None:
    """Turn on JAX's persistent compilation cache, unless the user's environment already did."""
    if folder is None or jax.config.jax_compilation_cache_dir:
        return
    if folder == "auto":
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = str(Path(base) / "malt-jax" / "programs")
    jax.config.update("jax_compilation_cache_dir", folder)
    # Every program counts: a run has few, and the small ones are those of the tests.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
