"""What the sampler did and what it cost."""

from __future__ import annotations

import threading
from dataclasses import dataclass, fields
from typing import Any

from malt_jax.sampling.memory import peak_bytes


@dataclass
class Stats:
    """Sums over every call of one sampler."""

    completions: int = 0
    tokens_generated: int = 0
    """Tokens of returned completions."""
    prefill_tokens_naive: int = 0
    """Prompt tokens if every completion computed its own prompt."""
    prefill_tokens_computed: int = 0
    """Prompt tokens whose keys and values were computed."""
    prefill_tokens_padded: int = 0
    """The same with the padding of the prefill calls."""
    row_steps: int = 0
    """Decode steps times rows."""
    row_steps_useful: int = 0
    """Those that made a token of a returned completion."""
    executables: int = 0
    compile_seconds: float = 0.0
    seconds: float = 0.0
    """Prefill and decode, without compiling."""
    host_wait_seconds: float = 0.0
    """The part of it in which the device may have waited for the host."""
    cache_bytes: int = 0
    """The most that caches and logits took on one device, by the memory plan."""

    def __post_init__(self):
        self._lock = threading.Lock()

    def add(self, **amounts: int | float) -> None:
        """Add to some of the sums, from any thread."""
        with self._lock:
            for name, amount in amounts.items():
                setattr(self, name, getattr(self, name) + amount)

    @property
    def padding_waste(self) -> float:
        """Share of row-steps spent on finished or empty rows."""
        return 1 - self.row_steps_useful / self.row_steps if self.row_steps else 0.0

    @property
    def host_wait_fraction(self) -> float:
        return self.host_wait_seconds / self.seconds if self.seconds else 0.0

    def since(self, earlier: Stats) -> Stats:
        """What was added after `earlier`, a copy; `cache_bytes`, the most so far, stays."""
        sums = [field.name for field in fields(self) if field.name != "cache_bytes"]
        added = {name: getattr(self, name) - getattr(earlier, name) for name in sums}
        return Stats(**added, cache_bytes=self.cache_bytes)

    def as_dict(self) -> dict[str, Any]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            **values,
            "peak_bytes": peak_bytes(),
            "padding_waste": self.padding_waste,
            "host_wait_fraction": self.host_wait_fraction,
        }
