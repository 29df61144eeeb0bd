"""One writer per run directory, by a lock that ends with the process that holds it."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

from filelock import FileLock, Timeout

from malt_jax.errors import Unavailable, UserError
from malt_jax.regular_files import open_regular, read_bytes
from malt_jax.storage.atomic import explained
from malt_jax.storage.schema import LOCK

PATIENCE = 1.0
"""Seconds to wait: a busy machine can take a moment to release the lock of a killed process."""
UNKNOWN = "another process"
_HELD: set[str] = set()
"""The lock files that this process holds."""


class RunLock:
    """Holds `RUN/.lock` from construction until `release()` or the end of the process.

    The kernel drops the lock when the process ends, also after SIGKILL, so a lock file that is left
    over means nothing. The file holds {pid, host, command}, shown to a second writer. Forked
    workers do not hold the lock: filelock closes it in them.
    """

    def __init__(self, run: str | os.PathLike, command: str):
        path = Path(run, LOCK)
        # The lock belongs to the process and not to one thread (`thread_local`), so that `release`
        # works from any thread.
        # No fall-back to FileLock's "soft" lock: it would outlive a killed process.
        self._lock = FileLock(path, PATIENCE, thread_local=False, fallback_to_soft=False)
        owner = {"pid": os.getpid(), "host": socket.gethostname(), "command": command}
        # Opened before it is locked, because FileLock would also lock a pipe or a device.
        with (
            explained(path),
            open(open_regular(path, os.O_RDWR | os.O_CREAT), "r+b", buffering=0) as file,
        ):
            self._acquire(path)
            try:
                # Only with the lock held: until then the content belongs to the other process, and
                # names it.
                file.truncate()
                file.write(json.dumps(owner).encode())
                _HELD.add(os.path.realpath(path))
            # The caller gets no RunLock after an exception here, so nobody could release it later.
            except BaseException:
                self.release()
                raise

    def _acquire(self, path: Path) -> None:
        try:
            self._lock.acquire()
        except Timeout:
            # Of a machine that is gone, a file server keeps the lock for a while, and a process
            # that was killed may take long to give its memory back: launchers try again.
            raise (UserError if _holder_is_alive(path) else Unavailable)(
                f"{path.parent}: {_holder(path)} is writing this run. Wait for it or stop it, or "
                "choose another --output-dir."
            ) from None
        except OSError as error:
            raise UserError(
                f"{path}: this file system cannot lock files ({error.strerror}), so two runs could "
                "not be kept apart; choose a folder on another disk."
            ) from error

    def release(self) -> None:
        _HELD.discard(os.path.realpath(self._lock.lock_file))
        self._lock.release()


def _holder(path: Path) -> str:
    try:
        # This is read without the lock, so the content may be empty or half written.
        owner = json.loads(read_bytes(path))
        return f"process {owner['pid']} on {owner['host']} ({owner['command']!r})"
    except (OSError, ValueError, KeyError, TypeError, UserError):
        return UNKNOWN  # it has the lock but has not yet written who it is


def _holder_is_alive(path: Path) -> bool:
    """Whether the holder is a process of this machine that has not ended."""
    try:
        owner = json.loads(read_bytes(path))
        if owner["host"] != socket.gethostname():
            return False
        os.kill(owner["pid"], 0)  # signal 0 only asks whether there is such a process
        # In containers all numbers begin with 1, and the one of a holder that is gone may be ours.
        return owner["pid"] != os.getpid() or os.path.realpath(path) in _HELD
    except PermissionError:
        return True  # a process of another user
    except (OSError, ValueError, KeyError, TypeError, UserError):
        return False


def is_lock(path: Path) -> bool:
    """Whether a `RunLock` made this file; an empty one counts, because it holds nothing to lose."""
    return path.is_file() and (not path.stat().st_size or _holder(path) != UNKNOWN)
