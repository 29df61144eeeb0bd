"""The engine: one thread that owns the device and samples for all requests at once.

Every draw of every request is a job that waits for its next turn. The thread takes the job that has
waited longest and, with it, all others that wait for the same role with the same sampling
parameters: these are one call of the sampler, whoever asked and whatever the question. A request
that comes during a call joins the next one. A draw moves on to its next role as soon as its turn is
sampled, so that drafts of new requests and revisions of older ones alternate.
"""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from malt_jax.answering.turns import Answerer, Draw, GraderFailed
from malt_jax.escape import visible
from malt_jax.sampling.request import SamplingParams
from malt_jax.serving.errors import SERVER, ApiError, closing, not_graded, too_long
from malt_jax.serving.metrics import Metrics
from malt_jax.tree.roles import Role

Notify = Callable[[Any], None]
"""Passes an event of a ticket on; called in the engine's thread and must not wait."""


@dataclass(frozen=True)
class Text:
    """New text of a turn that is being written; a turn begins with an empty one."""

    draw: int
    role: str
    text: str


@dataclass(frozen=True)
class Finished:
    """A draw has taken its last turn."""

    draw: int


@dataclass(frozen=True)
class Failed:
    """The request cannot be answered."""

    error: ApiError


@dataclass(eq=False)
class Ticket:
    """A request in the engine: its draws, and whether anybody still waits for them."""

    draws: list[Draw]
    roles: tuple[Role, ...]
    params: tuple[SamplingParams, ...]
    """Of each role."""
    notify: Notify
    streams: bool = False
    cancelled: bool = False


@dataclass(eq=False)
class Job:
    """One draw of a ticket and the number of turns that it has taken here."""

    ticket: Ticket
    index: int
    step: int = 0

    @property
    def draw(self) -> Draw:
        return self.ticket.draws[self.index]

    @property
    def key(self) -> tuple[str, SamplingParams]:
        """Jobs with the same key can be sampled in one call."""
        return self.ticket.roles[self.step].name, self.ticket.params[self.step]


class Abandoned(Exception):
    """Nobody waits for what is being sampled any more."""


@dataclass
class Engine:
    """Samples for tickets in a thread of its own. `start` it, `submit` tickets, `close` it."""

    make_answerer: Callable[[Callable[[], None]], Answerer]
    """Makes the answerer; its argument is called between two chunks of decode steps."""
    metrics: Metrics
    max_batch: int = 512
    """The most draws in one call."""
    _waiting: deque[Job] = field(default_factory=deque)
    _current: Sequence[Job] = ()
    _closing: bool = False
    _thread: threading.Thread | None = None

    def __post_init__(self) -> None:
        self._changed = threading.Condition()
        self.answerer = self.make_answerer(self._between_chunks)

    def start(self) -> None:
        self._thread = threading.Thread(target=self._work, name="malt-engine", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether requests are answered."""
        return self._thread is not None and self._thread.is_alive() and not self._closing

    @property
    def waiting(self) -> int:
        """Draws that wait for a turn."""
        return len(self._waiting)

    def submit(self, ticket: Ticket) -> None:
        """Queues all draws of a ticket."""
        with self._changed:
            if not self.alive:
                raise closing()
            self._waiting.extend(Job(ticket, index) for index in range(len(ticket.draws)))
            self._changed.notify()

    def cancel(self, ticket: Ticket) -> None:
        """Takes no further turns of a ticket; a call that only it waits for is ended."""
        ticket.cancelled = True

    def close(self, patience: float) -> None:
        """Refuses new tickets, lets the others finish for so many seconds, and ends the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread:
            self._thread.join(patience)
        self.give_up()
        if self._thread:
            self._thread.join(patience)

    def give_up(self) -> None:
        """Refuses new tickets, and ends those that are not finished."""
        with self._changed:
            self._closing = True
            jobs = [*self._waiting, *self._current]
            self._waiting.clear()
            self._changed.notify()
        self._fail(jobs, closing())

    def _between_chunks(self) -> None:
        """Ends a call of the sampler that nobody waits for."""
        if self._current and all(job.ticket.cancelled for job in self._current):
            raise Abandoned

    def _work(self) -> None:
        while batch := self._next_batch():
            try:
                self._take_turn(batch)
            except Abandoned:
                pass
            except Exception:
                # One call has failed; the engine goes on with the others.
                print(visible(traceback.format_exc()), end="", file=sys.stderr)
                self._fail(batch, ApiError(500, "sampling has failed; the server's log says why.",
                                           kind=SERVER, code="internal_error"))  # fmt: skip
            finally:
                self._current = ()

    def _next_batch(self) -> list[Job]:
        """Waits for work and takes the jobs of the next call; none once the engine is closed."""
        with self._changed:
            while True:
                for job in [job for job in self._waiting if job.ticket.cancelled]:
                    self._waiting.remove(job)
                if self._waiting:
                    break
                if self._closing:
                    return []
                self._changed.wait()
            key = self._waiting[0].key
            batch = [job for job in self._waiting if job.key == key][: self.max_batch]
            taken = set(map(id, batch))
            self._waiting = deque(job for job in self._waiting if id(job) not in taken)
            # Within the lock, so that `give_up` finds every job in one place or the other.
            self._current = batch
            return batch

    def _take_turn(self, batch: Sequence[Job]) -> None:
        """One call of the sampler: the next turn of every job in the batch."""
        first = batch[0].ticket
        role, params = first.roles[batch[0].step], first.params[batch[0].step]
        draws = [job.draw for job in batch]
        prompts = sum(draw.prompt_tokens for draw in draws)

        def on_text(index: int, text: str) -> None:
            ticket = batch[index].ticket
            if ticket.streams and not ticket.cancelled:
                ticket.notify(Text(batch[index].index, role.name, text))

        # Without a listener the sampler may split the batch over several streams.
        listens = any(job.ticket.streams for job in batch)
        began = time.perf_counter()
        self.answerer.take_turn(role, draws, params, on_text if listens else None)
        self.metrics.batch(
            role.name,
            draws=len(batch),
            seconds=time.perf_counter() - began,
            tokens=sum(draw.turns[-1].tokens for draw in draws if not draw.error),
            prompt_tokens=sum(draw.prompt_tokens for draw in draws) - prompts,
        )
        onward = [job for job in batch if self._next_turn(job)]
        with self._changed:
            self._waiting.extend(onward)

    def _next_turn(self, job: Job) -> bool:
        """Whether a job has another turn to take; if not, its ticket is told."""
        if job.ticket.cancelled:
            return False
        if error := job.draw.error:
            failed = not_graded if isinstance(error, GraderFailed) else too_long
            self._fail([job], failed(error))
            return False
        job.step += 1
        if job.step < len(job.ticket.roles):
            return True
        job.ticket.notify(Finished(job.index))
        return False

    def _fail(self, batch: Sequence[Job], error: ApiError) -> None:
        for ticket in {job.ticket for job in batch}:
            if not ticket.cancelled:
                ticket.cancelled = True
                ticket.notify(Failed(error))
