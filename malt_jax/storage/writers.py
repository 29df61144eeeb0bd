"""One run directory and several processes: process 0 writes it, the others wait for it.

All processes of a run make the same calls in the same order. Functions that write do nothing in
processes other than 0, and all processes meet before and after something is written that the others
rely on. A single process never waits.
"""

from __future__ import annotations

from collections.abc import Callable

from malt_jax.errors import Unavailable, UserError

# Empty for a single process, else one entry: whether this process writes, its barrier, and its
# "any" over all processes.
_processes: list[tuple[bool, Callable[[str], None], Callable[[bool, str, bool], bool]]] = []


def join(
    writes: bool, meet: Callable[[str], None], any_of: Callable[[bool, str, bool], bool]
) -> None:
    """Makes this process one of several.

    `meet(place)` returns once all processes are at that place; `any_of(flag, place, patient)`
    returns whether the flag of any process is set, and with `patient` it may take any time.
    """
    _processes[:] = [(writes, meet, any_of)]


def several() -> bool:
    """Whether the run has more than one process."""
    return bool(_processes)


def is_writer() -> bool:
    """Whether this process writes the run directory."""
    return not _processes or _processes[0][0]


def wait_for_all(place: str) -> None:
    """Waits until all processes of the run are at this place."""
    if _processes:
        _processes[0][1](place)


def any_of(flag: bool, place: str, patient: bool = False) -> bool:
    """Whether the flag of any process is set; every process gets the same answer."""
    return _processes[0][2](flag, place, patient) if _processes else flag


def on_writer(work: Callable[[], None], patient: bool = False) -> None:
    """Process 0 does `work` while the others wait; a `UserError` in it ends all of them.

    With `patient` the work may take any time, such as an upload; else it counts as hung after
    `mesh.hang` seconds.
    """
    refused = None
    if is_writer():
        try:
            work()
        except UserError as error:
            refused = error
    # Every process must make this call, whether it did the work or not: it is a collective
    # operation, and without one of them the others would wait forever.
    if any_of(refused is not None, "process 0 has written", patient):
        # All end with one status, by which a launcher decides whether to start them again.
        status = refused.status if refused else None
        may_pass = any_of(status == Unavailable.status, "process 0 was refused")
        kind = Unavailable if may_pass else UserError
        raise refused or kind("process 0 of this run was refused; its message says why.")
