"""SIGTERM and Ctrl-C as a request to stop at the next safe point.

A signal belongs to the process, so the request does too: the only module state here is that, and
whether the process ends with it.
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
_last: list[bool] = []


def told_to_stop() -> bool:
    """Whether a signal has asked this very process to stop."""
    return bool(_received)


def stop_requested() -> bool:
    """Whether a signal has asked this process, or another of the run, to stop."""
    return any_of(told_to_stop())


def raise_if_stopped() -> None:
    """Raises `RunStopped` if a stop was requested; stages call it once their state is saved."""
    if stop_requested():
        raise RunStopped(_received[0] if _received else signal.SIGTERM)


def stop_ends_process() -> None:
    """Says that this process ends once it was told to stop, as the program `malt` does.

    Letting go of a model takes a while after the block of `graceful_stop`, and a second signal in
    that while must not change the exit status.
    """
    _last[:] = [True]


@contextmanager
def graceful_stop() -> Iterator[None]:
    """Within the block SIGTERM and SIGINT only set the request; any further one is harmless.

    Python delivers signals to the main thread alone; in another thread this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.signal(number, _note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        ends = _last and _received
        for number, handler in previous.items():
            signal.signal(number, signal.SIG_IGN if ends else handler)
        if _note not in previous.values():  # not when nested: the outer block asks again
            _received.clear()


def _note(number: int, _frame: object) -> None:
    first = not _received
    _received.append(number)
    if first:  # os.write: the signal may have come in the middle of a print
        with contextlib.suppress(OSError):  # whoever read it may be gone
            os.write(2, b"\nstopping at the next safe point; the same command goes on from there\n")


def _in_children() -> None:
    """Forked workers end when told to, and leave Ctrl-C, which reaches them too, to this process.

    A worker that died of it would look like an answer that cannot be graded.
    """
    for number, action in ((signal.SIGTERM, signal.SIG_DFL), (signal.SIGINT, signal.SIG_IGN)):
        if signal.getsignal(number) is _note:
            signal.signal(number, action)


os.register_at_fork(after_in_child=_in_children)
