"""SIGTERM and Ctrl-C are requests to stop at the next safe point.

Signals belong to the process, so the request is module state: the signals that came, and whether
the process ends after them.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from malt_jax.errors import RunStopped
from malt_jax.storage.writers import any_of

_received: list[int] = []
_ends_process: list[bool] = []
_notices: list[str] = []
CONTINUES = "stopping at the next safe point; the same command continues from there"


def signal_received() -> bool:
    """Whether a signal has asked this process to stop."""
    return bool(_received)


def first_signal() -> int:
    """The first signal that this process got; SIGTERM if only another process got one."""
    return _received[0] if _received else signal.SIGTERM


def stop_requested() -> bool:
    """Whether a signal has asked this process, or another one of the run, to stop."""
    return any_of(signal_received(), "safe point")


def raise_if_stopped() -> None:
    """Raises `RunStopped` if a stop was requested; stages call it after saving their state."""
    if stop_requested():
        raise RunStopped(first_signal())


def stop_ends_process() -> None:
    """Declares that this process ends after a stop, as the program `malt` does.

    Releasing a model takes a while after the block of `graceful_stop`; a second signal during that
    time must not change the exit status.
    """
    _ends_process[:] = [True]


@contextmanager
def graceful_stop(notice: str = CONTINUES) -> Iterator[None]:
    """Within the block, SIGTERM and SIGINT only record the request; further ones have no effect.

    `notice` is said when the request comes; that of the outermost block counts.
    Python delivers signals to the main thread only; in any other thread this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # Ctrl-C sends SIGINT; a scheduler sends SIGTERM before it kills.
    previous = {number: signal.signal(number, _note) for number in (signal.SIGTERM, signal.SIGINT)}
    _notices.append(notice)
    try:
        yield
    finally:
        _notices.pop()
        # A program that is about to end ignores both signals; other callers get their handlers
        # back.
        ends = _ends_process and _received
        for number, handler in previous.items():
            signal.signal(number, signal.SIG_IGN if ends else handler)
        if _note not in previous.values():  # a nested block leaves the request to the outer one
            _received.clear()


def _note(number: int, _frame: object) -> None:
    first = not _received
    _received.append(number)
    if first:  # os.write, because the signal may interrupt a print
        with contextlib.suppress(OSError):  # standard error may be closed
            os.write(2, f"\n{_notices[0] if _notices else CONTINUES}\n".encode())


def _in_children() -> None:
    """Lets forked workers end on SIGTERM and ignore Ctrl-C, which their parent also receives.

    A worker that ended on Ctrl-C would look like an answer that cannot be graded.
    """
    for number, action in ((signal.SIGTERM, signal.SIG_DFL), (signal.SIGINT, signal.SIG_IGN)):
        if signal.getsignal(number) is _note:
            signal.signal(number, action)


os.register_at_fork(after_in_child=_in_children)
