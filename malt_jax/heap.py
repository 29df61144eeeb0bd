"""Freed memory, given back to the system."""

from __future__ import annotations

import ctypes


def give_back() -> None:
    """Returns what the C library keeps of freed memory, where it can (glibc).

    Compiling and computing on a CPU free gigabytes in pieces that glibc would keep for later: a
    process that had searched was seen with six times its live arrays resident.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
