"""A call of the sampler that takes further requests while it runs.

    with sampler.open(policies, prompt_tokens, siblings) as call:
        call.add(requests)
        while call.busy:
            for ended in call.step():
                call.add(requests_that_follow(ended), ended.place)

So rows that have nothing left of one role's completions take those of the next role, and nothing
waits for the longest completion of a level. What is drawn is the same as in separate calls, since
it depends on prompts and keys. Rows of several policies decode in one batch: sampling parameters
are looked up per row, and the policies' adapters lie side by side (`models.lora.join_adapters`), so
that no adapter is ever switched.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from malt_jax.errors import UserError
from malt_jax.models.lora import Adapter, join_adapters
from malt_jax.models.sharding import on_mesh
from malt_jax.sampling.request import Completion, Policy, Request
from malt_jax.sampling.stream import Stream

if TYPE_CHECKING:
    from malt_jax.sampling.sampler import AdapterOrWeights, Plan, Sampler


class Place(NamedTuple):
    """What draws a request: one of the call's streams, and a shard of the mesh."""

    stream: int
    shard: int | None


class Ended(NamedTuple):
    """A completion that has ended."""

    request: Request
    sibling: int
    completion: Completion
    place: Place
    """Where it was drawn. Requests that share its prompt are best added there."""


class OpenCall:
    """A running call of the sampler to which requests can be added; a context manager, for one
    thread."""

    def __init__(
        self, sampler: Sampler, policies: Sequence[Policy], prompt_tokens: int, siblings: int
    ):
        """Raises UserError where policies cannot be drawn in one batch."""
        self._sampler, self._siblings = sampler, siblings
        self._params = [policy.params for policy in policies]
        self._adapter, self._apart = _one_adapter(sampler, policies)
        # Before its caches exist, since they are planned for the memory that is free.
        self._plan = self._planned(prompt_tokens)
        self._streams: list[Stream] = []
        self._in_flight: deque[int] = deque()
        """Streams in the order in which their chunks were begun."""
        self._new: list[tuple[Request, Place | None]] = []
        self._long: list[Request] = []
        """Requests that are too long for the caches of this pass."""

    def __enter__(self) -> OpenCall:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def rest(self) -> None:
        """Waits until the devices have nothing to do, so that the caller may compile programs."""
        for stream in self._streams:
            stream.device.wait()

    @property
    def busy(self) -> bool:
        """Whether some completion has not ended."""
        return bool(self._new or self._long or not all(s.finished for s in self._streams))

    @property
    def hungry(self) -> bool:
        """Whether more requests would fill rows that the known ones leave idle.

        Not while some wait for larger caches: they are drawn once all others have ended.
        """
        if self._long:
            return False
        waiting = sum(len(request.keys) for request, _ in self._new)
        demand = sum(stream.scheduler.demand for stream in self._streams)
        most_rows = self._plan[0][-1].rows * self._sampler.streams
        return demand + waiting < 2 * most_rows

    def _planned(self, prompt_tokens: int) -> Plan:
        longest = max(params.max_new_tokens for params in self._params)
        return self._sampler.plan(prompt_tokens, longest, self._siblings)

    def _fits(self, request: Request) -> bool:
        """Whether the caches of this pass hold the prompt."""
        return len(request.prompt) - 1 <= self._plan[0][0].prefix_tokens

    def add(self, requests: Iterable[Request], place: Place | None = None) -> None:
        """Adds requests, which may belong to any of the policies."""
        for request in requests:
            self._sampler.check([request], self._params[request.policy])
            self._new.append((request, place))

    def step(self) -> list[Ended]:
        """Draws a chunk of steps; returns the completions that have ended."""
        with on_mesh(self._sampler.mesh):
            self._place()
            for number, stream in enumerate(self._streams):
                if not stream.begun and not stream.finished:
                    self._begin(number)
            if not self._in_flight:
                return []
            number = self._in_flight.popleft()
            stream = self._streams[number]
            stream.end()
            # With prompts at hand the device goes on while the host reads what has ended. Without,
            # what follows from that is what the next chunk needs.
            if stream.scheduler.pending:
                self._begin(number)
            return self._ended(number)

    def _begin(self, number: int) -> None:
        self._streams[number].begin()
        self._in_flight.append(number)

    def _ended(self, number: int) -> list[Ended]:
        stream = self._streams[number]
        before = stream.scheduler.useful_steps
        stream.publish()
        ended = [
            Ended(request, sibling, completion, Place(number, shard))
            for request, sibling, completion, shard in stream.take_ended()
        ]
        self._sampler.stats.add(
            row_steps_useful=stream.scheduler.useful_steps - before,
            prefill_tokens_naive=sum(len(one.request.prompt) for one in ended),
            completions=len(ended),
            tokens_generated=sum(len(one.completion.tokens) for one in ended),
        )
        return ended

    def _place(self) -> None:
        """Gives new requests to streams; the first ones open the streams."""
        if not self._new and self._long and all(stream.finished for stream in self._streams):
            # Only those are left that need larger caches.
            self._close()
            self._new = [(request, None) for request in self._long]
            self._long = []
            self._plan = self._planned(max(len(request.prompt) for request, _ in self._new))
        new, self._new = self._new, []
        if not new:
            return
        if not self._streams:
            self._open([request for request, _ in new])
            return
        loads = [stream.scheduler.demand for stream in self._streams]
        for request, place in new:
            if not self._fits(request):
                self._long.append(request)
                continue
            number, shard = place or Place(loads.index(min(loads)), None)
            loads[number] += len(request.keys)
            self._streams[number].scheduler.add(request, shard)

    def _open(self, requests: Sequence[Request]) -> None:
        fit = [request for request in requests if self._fits(request)]
        self._long += [request for request in requests if not self._fits(request)]
        # Neighbours in the order of their tokens, so that a stream's prompts share prefixes.
        fit.sort(key=lambda request: (request.order, request.prompt))
        count = self._sampler.streams
        cuts = [len(fit) * i // count for i in range(count + 1)]
        for first, end in pairwise(cuts):
            members = fit[first:end]
            stream = self._sampler.stream(
                members, self._params, self._adapter, self._plan, apart=self._apart
            )
            stream.grows = True
            self._streams.append(stream)

    def _close(self) -> None:
        for stream in self._streams:
            stream.enter(None)
        self._streams = []
        self._in_flight.clear()


def _one_adapter(sampler: Sampler, policies: Sequence[Policy]) -> tuple[AdapterOrWeights, bool]:
    """The adapter of a batch of all policies, and whether each policy has a part of its own."""
    adapters = [policy.adapter for policy in policies]
    if all(adapter is adapters[0] for adapter in adapters):
        return sampler.in_model_dtype(adapters[0]), False
    for adapter in adapters:
        if adapter is not None and not isinstance(adapter, Adapter):
            raise UserError(
                "the roles have whole weights of their own, which one batch cannot hold; draw "
                "them level by level (search.streaming: false)."
            )
        if adapter is not None and any(name.startswith("expert_") for name in adapter.targets):
            raise UserError(
                "the roles have adapters on a mixture's experts, which one batch cannot tell "
                "apart; draw them level by level (search.streaming: false)."
            )
    return sampler.replicated(join_adapters(adapters)), True
