"""One batch of rows at work: the scheduler's loop, one chunk of decode steps per cycle."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from malt_jax.errors import UserError
from malt_jax.sampling.device import Device
from malt_jax.sampling.memory import CacheShape, first_shape
from malt_jax.sampling.prefill import PrefillCall, PrefillShape, plan_calls
from malt_jax.sampling.request import Completion, Request
from malt_jax.sampling.scheduler import PartialCompletion, Scheduler
from malt_jax.sampling.stats import Activity, Stats, Timer

OnTokens = Callable[[int, int, list[int]], None]
"""Called with (request, completion, new token ids) as they come."""


@dataclass
class Stream:
    """One batch of rows: its scheduler, its device, and the steps of the loop that joins them.

    A cycle is `begin`, `publish` and `end`, in an open call `end`, `begin` and `publish`. The
    device's work is dispatched and not waited for, so that the host can look through the last
    chunk's tokens while the device draws the next ones.
    Stop texts are therefore found one chunk late; what was drawn after them is cut off.
    """

    scheduler: Scheduler
    device: Device
    shapes: Sequence[CacheShape]
    """The cache shapes that it may have, rising."""
    prefill_shape: PrefillShape
    stats: Stats
    timer: Timer
    tokenizer: Any
    on_chunk: Callable[[], None]
    on_tokens: OnTokens | None = None
    grows: bool = False
    """Requests may be added, so that a larger shape may be needed later."""
    begun: bool = False
    """The device has a chunk that was not waited for."""

    def __post_init__(self) -> None:
        self.enter = partial(self.timer.enter, self.scheduler)
        self._ended: list[PartialCompletion] = []
        self._taken: Counter[int] = Counter()
        """Per request, its completions that were taken."""

    @property
    def finished(self) -> bool:
        return self.scheduler.finished and not self.begun

    def begin(self) -> None:
        """Dispatches prefills and the next chunk."""
        scheduler, device = self.scheduler, self.device
        self.enter(Activity.HOST)
        self.on_chunk()

        # 1. Grow: what has been added may fill a larger batch.
        if self.grows:
            wanted = self.shapes.index(first_shape(self.shapes, scheduler.demand))
            # One shape after the other, so that there are fewer programs.
            for shape in self.shapes[self.shapes.index(device.shape) + 1 : wanted + 1]:
                device.resize(shape, *scheduler.resize(shape))

        # 2. Prefill: free prefix cache entries get the next prompts, and the completions of these
        #    prompts join the queue.
        prefills = scheduler.admit()
        entries, shards = device.shape.entries, scheduler.shards
        for call in plan_calls(prefills, entries, self.prefill_shape, shards):
            if isinstance(call, PrefillCall):
                self.stats.add(
                    prefill_tokens_computed=int(call.chunks.length.sum()),
                    prefill_tokens_padded=call.tokens.size,
                )
            was_idle = device.idle()
            device.prefill(call)
            self.enter(Activity.OVERLAPPED, was_idle)

        # 3. Shrink: once nothing is pending, idle rows cannot be filled again. A smaller batch
        #    takes over as soon as the completions that are left have room in it.
        while (smaller := self._smaller()) and scheduler.fits(smaller.rows):
            device.resize(smaller, *scheduler.resize(smaller))

        # 4. Decode a chunk. It ends early when enough rows are idle for another step to help.
        was_idle = device.idle()
        device.decode(scheduler, scheduler.idle_limit(smaller.rows if smaller else 0))
        self.enter(Activity.OVERLAPPED, was_idle)
        self.begun = True

    def publish(self) -> None:
        """Records the last chunk, ends completions at stop texts, and passes new tokens on."""
        for growth in self.scheduler.record():
            self.scheduler.end_at_stop_text(growth, self.tokenizer)
            completion = growth.completion
            if self.on_tokens:
                new = completion.tokens[growth.before :]
                self.on_tokens(completion.request, completion.sibling, new)
            if completion.finish is not None:
                self._ended.append(completion)

    def end(self) -> None:
        """Waits for the chunk, and takes over what the next one depends on."""
        self.enter(Activity.DEVICE, device_idle=self.device.idle())
        rows, output = self.device.result()
        self.enter(Activity.HOST)
        self.begun = False
        if bool(output.not_finite):
            raise UserError(
                "model: its logits hold NaN or infinity, so the weights or the adapter are "
                "broken; load them again or train with a lower learning rate."
            )
        self.stats.add(row_steps=int(output.steps) * self.device.shape.rows)
        self.scheduler.process_output(rows, output)

    def take_ended(self) -> list[tuple[Request, int, Completion, int]]:
        """(request, sibling, completion, shard) of those that ended since the last call."""
        ended, self._ended = self._ended, []
        taken = []
        for one in ended:
            request = self.scheduler.requests[one.request]
            taken.append((request, one.sibling, one.done(), one.shard))
            # A long run would keep all of them.
            one.tokens, one.logprobs = [], []
            self._taken[one.request] += 1
            if self._taken[one.request] == len(request.keys):
                del self.scheduler.requests[one.request], self._taken[one.request]
        return taken

    def _smaller(self) -> CacheShape | None:
        """The next smaller shape, if there is one."""
        at = self.shapes.index(self.device.shape)
        return self.shapes[at - 1] if at else None
