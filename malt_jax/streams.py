"""The process's standard streams, made fit for closed, full and abandoned ones.

What a run says on the way must never end it, and what a command prints must not be lost unsaid:
standard error swallows what it cannot write, standard output raises `OutputLost`.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import Any


class OutputLost(Exception):
    """Standard output could not be written. No OSError, which a library might take for its own."""

    def __init__(self, error: OSError):
        super().__init__(error.strerror)
        self.abandoned = error.errno == errno.EPIPE
        """Whether whoever read it has gone, having seen enough."""


def set_up() -> None:
    """Replaces `sys.stdout` and `sys.stderr`; a closed stream becomes the null device."""
    for number in (0, 1, 2):  # in this order: a new descriptor takes the lowest free number
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = _text(_Output(1, "w", closefd=False), sys.stdout)
    sys.stderr = _text(_Errors(2, "w", closefd=False), sys.stderr)


def drop_output() -> None:
    """Lets what is still to be written to standard output go, so that Python's end is quiet."""
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
            return len(data)


def _text(raw: io.FileIO, old: Any) -> io.TextIOWrapper:
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=old.encoding if old else "utf-8",
        errors=old.errors if old else "backslashreplace",
        line_buffering=old is None or old.line_buffering or old.write_through,
    )
