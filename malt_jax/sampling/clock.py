"""How long the sampler worked, and for how much of that the device may have had nothing to do."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable

from malt_jax.sampling.stats import Stats

HOST, BESIDE, DEVICE = "host", "beside", "device"


class Clock:
    """Sums the time of all streams; where several are at work, time counts once.

    A stream is at HOST while it has given the device nothing, BESIDE while both work, and at DEVICE
    while it only waits. The device idles while every stream is at HOST. It may also have run out of
    work while its stream was BESIDE it, since that phase was last entered: for how long is not
    known, so all of that counts.
    """

    def __init__(self, stats: Stats, now: Callable[[], float] = time.perf_counter):
        self._stats, self._time = stats, now
        self._lock = threading.Lock()
        self._phases: dict[Hashable, str] = {}
        self._beside: dict[Hashable, float] = {}
        self._since = 0.0

    def enter(self, stream: Hashable, phase: str | None, ran_out: bool = False) -> None:
        """A stream begins a phase, or ends for good (None).

        `ran_out`: the device was found with nothing left to do for the stream, before it was given
        what this phase begins with.
        """
        with self._lock:
            now = self._time() - self._stats.compile_seconds
            if self._phases:
                spent = now - self._since
                idle = all(at == HOST for at in self._phases.values())
                self._stats.add(seconds=spent, host_wait_seconds=spent * idle)
            self._since = now
            others = [at for who, at in self._phases.items() if who != stream]
            beside = self._phases.get(stream) == BESIDE
            if ran_out and beside and all(at == HOST for at in others):
                self._stats.add(host_wait_seconds=now - self._beside[stream])
            if phase == BESIDE:
                self._beside[stream] = now
            if phase is None:
                self._phases.pop(stream, None)
                self._beside.pop(stream, None)
            else:
                self._phases[stream] = phase
