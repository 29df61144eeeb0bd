"""Ends a run in which one process hangs, with a sentence that names this process.

JAX's heartbeat ends the others when a process dies or is stopped. A process whose main thread hangs
(a file system that does not answer, an endless loop in a grader, a deadlock) still sends it, and
the others would wait for it in a collective.

So every process counts the exchanges that it comes to: the barriers and shared flags after every
decode chunk, optimiser step and sealed file. All processes make the same ones in the same order. A
thread publishes how far its process is in the key-value store of JAX's coordination service. Where
a process has waited too long at an exchange, those with a lower count are missing. Time counts only
while somebody waits: what all do alike, such as compiling, may take any time.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import json
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from malt_jax.errors import Unavailable
from malt_jax.escape import one_line

EVERY = 5.0
"""Seconds between two publications of a process, at most."""
FOLDER = "malt hang"
MOST_NAMED = 5


@dataclass(frozen=True)
class Standing:
    """How far a process is, as it publishes it."""

    host: str = "unknown host"
    count: int = 0
    """Exchanges that it has come to."""
    place: str = "its start"
    """The name of the last one."""
    waits: bool = False
    """It waits there for the others, and the time that this may take is limited."""
    seconds: float = 0.0
    """Time since it came there or, if it does not wait, since it left."""
    calls: str = "unknown code"
    """The innermost calls of its main thread."""

    def __str__(self) -> str:
        last = f"came last to exchange {self.count} ({self.place})"
        return f"({self.host}) hangs: it {last} and was last seen in {self.calls}"


def missing(standings: Mapping[int, Standing], limit: float) -> list[int]:
    """The processes that have not come to an exchange where another has waited for `limit` s."""
    counts = [one.count for one in standings.values() if one.waits and one.seconds >= limit]
    return [index for index, one in standings.items() if one.count < max(counts, default=0)]


def describe(standings: Mapping[int, Standing], late: list[int]) -> str:
    """The sentence that names the processes `late`, with what they did last."""
    waits = (one for one in standings.values() if one.waits)
    waiting = max(waits, key=lambda one: (one.count, one.seconds))
    named = "; ".join(f"process {index} {standings[index]}" for index in late[:MOST_NAMED])
    more = f"; so do {len(late) - MOST_NAMED} more" if len(late) > MOST_NAMED else ""
    return (
        f"{named}{more}. Others have waited {waiting.seconds:,.0f} s at exchange "
        f"{waiting.count} ({waiting.place}), so all processes end, with exit status "
        f"{Unavailable.status}. Finished work is kept: start the same command on every host again, "
        "with a higher mesh.hang if so long a pause is right."
    )


class Watch:
    """What one process publishes, and the thread that ends it when one of the run hangs."""

    def __init__(self, client: Any, process: int, processes: int, limit: float):
        """`client`: that of JAX's coordination service; `limit`: seconds that one may wait."""
        self._client, self._process, self._processes = client, process, processes
        self._limit, self._every = limit, min(EVERY, limit / 4)
        self._host = socket.gethostname()
        # One tuple, because the thread reads it at any moment: count, place, waits, since when.
        self._at = (0, Standing.place, False, time.monotonic())
        self._ended = threading.Event()

    @contextlib.contextmanager
    def waiting(self, place: str, patient: bool = False) -> Iterator[None]:
        """Encloses an exchange; with `patient` it may take any time."""
        count = self._at[0] + 1
        self._at = (count, place, not patient, time.monotonic())
        try:
            yield
        finally:
            self._at = (count, place, False, time.monotonic())

    def start(self) -> None:
        thread = threading.Thread(target=self._watch, name="hang", daemon=True)
        thread.start()

        def stop() -> None:
            self._ended.set()
            thread.join(self._every)

        # Called before JAX's own exit handler, after which there is no client to publish with.
        atexit.register(stop)

    def _watch(self) -> None:
        while not self._ended.is_set():
            # Where the coordinator does not answer, JAX's heartbeat ends the run.
            with contextlib.suppress(RuntimeError):
                self._look()
            self._ended.wait(self._every)

    def _look(self) -> None:
        count, place, waits, since = self._at
        seconds = time.monotonic() - since
        own = Standing(self._host, count, place, waits, seconds, _calls())
        key = f"{FOLDER}/{self._process}"
        self._client.key_value_set(key, json.dumps(asdict(own)), allow_overwrite=True)
        # In a run that goes on, nobody reads what all of a large pod publish.
        if seconds < self._limit:
            return
        found = dict(self._client.key_value_dir_get(FOLDER))
        keys = {index: f"{FOLDER}/{index}" for index in range(self._processes)}
        standings = {
            index: Standing(**json.loads(found[key])) if key in found else Standing()
            for index, key in keys.items()
        }
        if late := missing(standings, self._limit):
            said = f"malt: {one_line(describe(standings, late))}\n"
            with contextlib.suppress(OSError):  # standard error may be closed
                # To the descriptor itself, because the main thread may hang in a print.
                os.write(2, said.encode(errors="replace"))
            # The others need a moment to see it too, and JAX aborts them when process 0 is gone.
            time.sleep((2 if self._process == 0 else 1) * self._every)
            os._exit(Unavailable.status)


def _calls() -> str:
    """The three innermost calls of the main thread, without reading their source files."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    calls = itertools.islice(traceback.walk_stack(frame), 3) if frame else ()
    return " < ".join(
        f"{inner.f_code.co_name} ({os.path.basename(inner.f_code.co_filename)}:{line})"
        for inner, line in calls
    )
