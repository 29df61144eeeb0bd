"""One run directory, several processes: process 0 writes it, the others follow.

All processes of a run make the same calls in the same order. A follower leaves every write out, and
all of them meet before and after what one has written is relied on by the rest. One process alone
never waits.
"""

from __future__ import annotations

from collections.abc import Callable

from malt_jax.errors import UserError

_processes: list[tuple[bool, Callable[[str], None], Callable[[bool], bool]]] = []


def join(writes: bool, meet: Callable[[str], None], any_of: Callable[[bool], bool]) -> None:
    """Makes this process one of several.

    `meet(place)` returns once all are at that place, `any_of(flag)` whether any process's is set.
    """
    _processes[:] = [(writes, meet, any_of)]


def several() -> bool:
    """Whether the run has other processes than this one."""
    return bool(_processes)


def writes() -> bool:
    """Whether this process writes the run directory."""
    return not _processes or _processes[0][0]


def meet(place: str) -> None:
    """Waits for the run's other processes."""
    if _processes:
        _processes[0][1](place)


def any_of(flag: bool) -> bool:
    """Whether the flag of any process is set, the same answer in all of them."""
    return _processes[0][2](flag) if _processes else flag


def first(work: Callable[[], None]) -> None:
    """Process 0 does `work` while the others wait; a `UserError` of it ends all of them."""
    refused = None
    if writes():
        try:
            work()
        except UserError as error:
            refused = error
    if any_of(refused is not None):
        raise refused or UserError("process 0 of this run was refused; its message says why.")
