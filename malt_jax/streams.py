"""Standard streams that may be closed, full or abandoned by their reader.

A message must never end a run, and a result must never be lost without a word. So standard error
ignores what it cannot write, and standard output raises `OutputLost`.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import Any


class OutputLost(Exception):
    """Standard output could not be written. Not an OSError, which libraries might handle."""

    def __init__(self, error: OSError):
        super().__init__(error.strerror)
        self.abandoned = error.errno == errno.EPIPE
        """Whether the reader has closed the pipe, as `| head` does."""


def set_up() -> None:
    """Replaces `sys.stdout` and `sys.stderr`; a closed stream becomes the null device."""
    for number in (0, 1, 2):  # in this order, because a new descriptor takes the lowest free number
        try:
            os.fstat(number)
        except OSError:
            # Child processes inherit real standard streams but no file that Python opens, unless
            # told so.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    # Python sets a standard stream to None if its descriptor was closed at the start.
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = _text(_Output(1, "w", closefd=False), sys.stdout)
    sys.stderr = _text(_Errors(2, "w", closefd=False), sys.stderr)


def drop_output() -> None:
    """Discards what is still to be written to standard output, so that Python exits quietly."""
    # Python flushes what the buffer still holds at exit; now it goes to the null device.
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)


class _Output(io.FileIO):
    def write(self, data, /):
        try:
            return super().write(data)
        except OSError as error:
            raise OutputLost(error) from None


class _Errors(io.FileIO):
    def write(self, data, /):
        try:
            return super().write(data)
        except OSError:
            # The write counts as done, so that the buffer neither tries again nor raises at exit.
            return len(data)


def _text(raw: io.FileIO, old: Any) -> io.TextIOWrapper:
    """A text stream over `raw` with the settings of the one it replaces."""
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=old.encoding if old else "utf-8",
        errors="backslashreplace",  # an encoding like ASCII must not turn a result into an error
        line_buffering=old is None or old.line_buffering or old.write_through,
    )
