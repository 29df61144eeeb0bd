"""One writer a run directory, by a lock that dies with the process that holds it."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from pathlib import Path

from malt_jax.errors import UserError
from malt_jax.storage.atomic import explained, open_regular, read_bytes

NAME = ".lock"
PATIENCE = 1.0
"""Seconds: on a busy machine a process was seen to hold its lock for a moment after SIGKILL."""
UNSIGNED = "another process"


class RunLock:
    """Holds `RUN/.lock` from construction until `release()` or the end of the process.

    The kernel drops the lock however the process ends, SIGKILL included, so a left-over file means
    nothing. It holds {pid, host, command} for the message a second writer gets as `UserError`.
    """

    def __init__(self, run: str | os.PathLike, command: str):
        path = Path(run, NAME)
        with explained(path):
            self._handle: int | None = open_regular(path, os.O_RDWR | os.O_CREAT)
        try:
            _take(self._handle)
        except OSError as error:
            self.release()
            if not isinstance(error, BlockingIOError):
                raise UserError(
                    f"{path}: this file system cannot lock files ({error.strerror}), so two runs "
                    "could not be kept apart; choose a folder on another disk."
                ) from error
            raise UserError(
                f"{Path(run)}: {_holder(path)} is writing this run. Wait for it or stop it, or "
                "choose another --output-dir."
            ) from None
        owner = {"pid": os.getpid(), "host": socket.gethostname(), "command": command}
        os.ftruncate(self._handle, 0)
        os.pwrite(self._handle, json.dumps(owner).encode(), 0)
        # A forked worker that outlives a killed run must not keep the lock alive.
        os.register_at_fork(after_in_child=self.release)

    def release(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


def _take(handle: int) -> None:
    """BlockingIOError if the lock is held for longer than a killed process needs to be gone."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)


def _holder(path: Path) -> str:
    try:
        owner = json.loads(read_bytes(path))
        return f"process {owner['pid']} on {owner['host']} ({owner['command']!r})"
    except (OSError, ValueError, KeyError, TypeError, UserError):
        return UNSIGNED  # it has the lock but has not signed it yet


def is_lock(path: Path) -> bool:
    """Whether the file is one a `RunLock` made, or an empty one, in which nothing can be lost."""
    return path.is_file() and (not path.stat().st_size or _holder(path) != UNSIGNED)
