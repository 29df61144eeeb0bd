"""Copies a run to its mirror beside the work, in a thread of the process that writes the run.

What is sealed is copied at once, and work that is not sealed yet every `seconds`. So a machine that
vanishes takes with it at most the work since the last of these copies was complete: `seconds`, and
the time that a copy takes.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path

from malt_jax.errors import Unavailable, first_line
from malt_jax.escape import one_line
from malt_jax.regular_files import read_bytes
from malt_jax.storage import manifest, mirror
from malt_jax.storage.schema import parse
from malt_jax.storage.store import Store
from malt_jax.storage.unfinished import Unfinished, work_of

TRIES = 10
"""How often a copy is begun again because the run has changed during it."""


class Uploader:
    """The thread that copies.

    While the store does not answer, the run goes on and the copy is tried again every `seconds`;
    only `close` raises that error. Any other error is raised by the next call of `sealed` too.
    """

    def __init__(self, run: Path, url: str, seconds: float):
        self._run, self._url, self._seconds = run, url, seconds
        self._wanted, self._ended = threading.Event(), threading.Event()
        self._failure: Exception | None = None
        self._pushed = b""
        """The manifest that the store is known to hold."""
        self._unfinished: Unfinished | None = None
        self._slow = False
        # A daemon, because a crash of the run must end the process and not wait for a store.
        self._thread = threading.Thread(target=self._work, name="malt mirror", daemon=True)
        self._thread.start()

    def sealed(self) -> None:
        """Asks for what has been sealed to be copied."""
        if not isinstance(self._failure, Unavailable):
            self._raise()
        self._wanted.set()

    def close(self) -> None:
        """Returns once everything is copied. Raises the error if it could not be."""
        self._ended.set()
        self._wanted.set()
        self._thread.join()
        self._raise()

    def _raise(self) -> None:
        if failure := self._failure:
            self._failure = None  # said once
            raise failure

    def _work(self) -> None:
        while True:
            self._wanted.wait(self._seconds)
            self._wanted.clear()
            # Read before the copy: what is written before `close` is in the copy that follows it.
            ended = self._ended.is_set()
            try:
                self._copy()
            except Exception as error:
                if isinstance(error, Unavailable) and not (self._failure or ended):
                    reason = one_line(first_line(error.__cause__ or error))
                    self._say(
                        f"mirror: {self._url} could not be written: {reason}; the run goes on, and "
                        f"the copy is tried again every {self._seconds:g} s"
                    )
                self._failure = error
            else:
                if self._failure:
                    self._say(f"mirror: {self._url} is complete again")
                self._failure = None
            if ended:
                return

    @staticmethod
    def _say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def _copy(self) -> None:
        path = self._run / manifest.NAME
        # A run that holds nothing yet may be withdrawn, and is not copied.
        if not path.exists():
            return
        if not parse(read_bytes(path))["artefacts"] and not any(work_of(self._run, set())):
            return
        # What a stage seals, or removes, during the copy is looked at now and not after the pause.
        for _ in range(TRIES):
            if (raw := read_bytes(path)) != self._pushed:
                mirror.push(self._run, self._url)
                self._pushed = raw
            with mirror.explained(self._url, "written"):
                if self._unfinished is None:
                    self._unfinished = Unfinished(self._run, Store(self._url))
                complete = self._unfinished.push(parse(raw))
            if complete and read_bytes(path) == raw:
                return
        if not complete and not self._slow:
            self._slow = True  # said once
            self._say(
                f"mirror: checkpoints are replaced before {self._url} has taken them, so a machine "
                "that vanishes takes their training with it; save less often (save_minutes)"
            )
