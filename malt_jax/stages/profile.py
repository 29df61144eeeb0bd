"""`--profile`: a JAX trace of a few steps of each stage, in the run directory."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

SKIPPED = 2
"""Steps of a stage that are not traced: they compile, and a search begins with empty rows."""
TRACED = 3
"""Steps that a trace holds: chunks of decode steps in a search, optimiser steps in training."""


class Profiler:
    """Traces a few steps of every stage that it is told of; without a folder it does nothing."""

    def __init__(self, folder: Path | None, note: Callable[[str], None]):
        self._folder, self._note = folder, note
        self._stage: Path | None = None
        self._name, self._steps, self._tracing = "", 0, False
        # The sampler's streams end their chunks in threads of their own.
        self._lock = threading.Lock()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """While this is open, `between_steps` belongs to the stage `name`."""
        self._stage = self._folder and self._folder / name
        self._name, self._steps = name, 0
        try:
            yield
        finally:
            with self._lock:
                self._end()

    def between_steps(self, last: bool = False) -> None:
        """A step of the stage has ended or begins; the trace starts and stops here.

        `last`: no step follows, and what the stage does then is not traced.
        """
        with self._lock:
            if self._stage is None:
                return
            self._steps += 1
            if last:
                self._end()
                return
            if self._steps == SKIPPED + 1:
                import jax

                jax.profiler.start_trace(self._stage)
                self._tracing = True
            elif self._steps == SKIPPED + TRACED + 1:
                self._stop()

    def _end(self) -> None:
        if self._stage and self._tracing:
            self._stop()
        elif self._stage and 0 < self._steps <= SKIPPED:
            self._note(f"no profile of {self._name}, because it has too few steps")
        self._stage = None

    def _stop(self) -> None:
        import jax

        jax.profiler.stop_trace()
        self._tracing = False
        self._note(f"profile of {self._name}: {self._stage}")
