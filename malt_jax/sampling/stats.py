"""What the sampler did, what it cost, and how long the device may have waited for the host."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import asdict, dataclass, fields
from enum import Enum
from typing import Any

from malt_jax.memory import peak_bytes


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
    """Prompt tokens that the prefill calls computed, padding included."""
    row_steps: int = 0
    """Decode steps times rows."""
    row_steps_useful: int = 0
    """Row-steps that made a token of a returned completion."""
    executables: int = 0
    compile_seconds: float = 0.0
    seconds: float = 0.0
    """Seconds of prefill and decode, without compiling."""
    host_wait_seconds: float = 0.0
    """The part of `seconds` in which the device may have waited for the host."""
    cache_bytes: int = 0
    """The most that caches and logits took on one device, by the memory plan."""

    def __post_init__(self):
        self._lock = threading.Lock()

    def add(self, **amounts: int | float) -> None:
        """Adds to some of the sums, from any thread."""
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
        """What was added after `earlier`, a copy; `cache_bytes`, a maximum, stays as it is."""
        sums = [field.name for field in fields(self) if field.name != "cache_bytes"]
        added = {name: getattr(self, name) - getattr(earlier, name) for name in sums}
        return Stats(**added, cache_bytes=self.cache_bytes)

    def as_dict(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "peak_bytes": peak_bytes(),
            "padding_waste": self.padding_waste,
            "host_wait_fraction": self.host_wait_fraction,
        }


class Activity(Enum):
    """Whether host, device or both work for a stream of completions."""

    HOST = "host"
    """The host, and it has given the device nothing to do."""
    OVERLAPPED = "overlapped"
    """Host and device at the same time."""
    DEVICE = "device"
    """The device, and the host waits for it."""


class Timer:
    """Adds up the time of all streams; time in which several work counts once.

    The device idles while every stream is at HOST. It may also have run out of work while a stream
    was OVERLAPPED. The moment is unknown, so all of that is counted, from when it was last
    entered.
    """

    def __init__(self, stats: Stats, now: Callable[[], float] = time.perf_counter):
        self._stats, self._now = stats, now
        self._lock = threading.Lock()
        self._activities: dict[Hashable, Activity] = {}
        self._overlapped_since: dict[Hashable, float] = {}
        self._since = 0.0

    def enter(self, stream: Hashable, activity: Activity | None, device_idle: bool = False) -> None:
        """A stream begins an activity, or ends for good (None).

        `device_idle`: the device was found without work for the stream, just before it was given
        the work that this activity begins with.
        """
        with self._lock:
            now = self._now() - self._stats.compile_seconds
            if self._activities:
                spent = now - self._since
                idle = all(other is Activity.HOST for other in self._activities.values())
                self._stats.add(seconds=spent, host_wait_seconds=spent * idle)
            self._since = now
            before = self._activities.pop(stream, None)
            since = self._overlapped_since.pop(stream, now)
            alone = all(other is Activity.HOST for other in self._activities.values())
            if device_idle and before is Activity.OVERLAPPED and alone:
                self._stats.add(host_wait_seconds=now - since)
            if activity is Activity.OVERLAPPED:
                self._overlapped_since[stream] = now
            if activity is not None:
                self._activities[stream] = activity
