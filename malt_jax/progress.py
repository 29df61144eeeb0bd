"""What a running command says on standard error: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any


class Progress:
    """Says what is being done. `quiet` says nothing. Results never come here: they go to stdout."""

    def __init__(self, quiet: bool = False):
        self.quiet = quiet
        self.started = time.perf_counter()

    def note(self, text: str) -> None:
        """One line about something that happened."""
        if not self.quiet:
            print(f"[{time.perf_counter() - self.started:6.1f} s] {text}", file=sys.stderr, flush=True)

    def update(self, stage: str, done: int, total: int, **numbers: Any) -> None:
        """How far a stage is, with whatever numbers describe it."""
        shown = ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in numbers.items())
        self.note(f"{stage}: {done}/{total}" + (f", {shown}" if shown else ""))
