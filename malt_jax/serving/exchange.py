"""One request at work in the engine, and the two forms of its answer: whole, and as a stream."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from malt_jax.serving import replies
from malt_jax.serving.engine import Engine, Failed, Finished, Text, Ticket
from malt_jax.serving.errors import ApiError, too_slow
from malt_jax.serving.replies import Reply
from malt_jax.serving.requests import ChatRequest
from malt_jax.serving.stops import StopFilter
from malt_jax.serving.turns_in_order import InOrder, Piece

POLL = 0.5
"""Seconds between two looks at whether the client is still there."""
KEEP_ALIVE_EVERY = 15.0
"""Seconds of silence in a stream."""
PIECE = 1 << 16
"""Bytes of a whole answer that are sent at a time."""
SENDING = 5.0
"""Seconds beyond a request's time in which its answer can still be read."""


class Exchange:
    """One request at work in the engine."""

    def __init__(
        self,
        engine: Engine,
        request: Request,
        chat: ChatRequest,
        *,
        began: float,
        seconds: float,
        fingerprint: str,
        unread: Sequence[str] = (),
    ):
        """`began` by the performance counter; `seconds` until it must be answered.

        `unread`: see `Reply`.
        """
        self._engine, self._request, self._chat = engine, request, chat
        self._seconds, self._deadline = seconds, began + seconds
        answerer = engine.answerer
        loop, self._events = asyncio.get_running_loop(), asyncio.Queue[Any]()

        def notify(found: Any) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended, so nobody waits
                loop.call_soon_threadsafe(self._events.put_nowait, found)

        self.ticket = Ticket(
            chat.draws(),
            chat.roles,
            tuple(chat.params(role, answerer) for role in chat.roles),
            notify,
            streams=chat.stream,
        )
        self._reply = Reply(chat, self.ticket.draws, fingerprint, unread)
        engine.submit(self.ticket)

    async def whole(self) -> dict[str, Any]:
        """The completion, once every draw is finished."""
        left = len(self.ticket.draws)
        async for found in self._found():
            left -= isinstance(found, Finished)
            if not left:
                return self._reply.completion()
        raise ClientDisconnect

    async def stream(self) -> AsyncIterator[bytes]:
        """The events of the answer: turns as they are written, then the answer that won."""
        chat, last = self._chat, self._chat.roles[-1].name
        left = [chat.votes] * chat.choices
        answers = [StopFilter(chat.stop) for _ in range(chat.choices)]
        turns = [InOrder() for _ in range(chat.choices)]
        for choice in range(chat.choices):
            yield self._reply.chunk(choice, {"role": "assistant", "content": ""})
        async for found in self._found():
            if found is None:
                yield replies.KEEP_ALIVE
            elif isinstance(found, Text):
                choice, draw = divmod(found.draw, chat.votes)
                # With several votes nobody knows yet which draw will be the answer.
                if chat.votes == 1 and found.role == last:
                    for part in self._before(choice, turns[choice].finish(draw)):
                        yield part
                    if text := answers[choice].add(found.text):
                        whose = {"draw": draw, "role": found.role}
                        yield self._reply.chunk(choice, {"content": text}, malt=whose)
                    continue
                for part in self._before(choice, turns[choice].add(draw, found.role, found.text)):
                    yield part
            elif isinstance(found, Finished):
                choice, draw = divmod(found.draw, chat.votes)
                for part in self._before(choice, turns[choice].finish(draw)):
                    yield part
                left[choice] -= 1
                if not left[choice]:
                    for part in self._ending(choice, answers[choice]):
                        yield part
            if not any(left):
                break
        else:
            return  # the client is gone
        if chat.include_usage:
            yield self._reply.usage_chunk()
        yield replies.DONE

    def _before(self, choice: int, pieces: Iterable[Piece]) -> Iterator[bytes]:
        """Events with text of the turns before the answer."""
        for draw, role, text in pieces:
            whose = {"draw": draw, "role": role}
            yield self._reply.chunk(choice, {"reasoning_content": text}, malt=whose)

    def _ending(self, choice: int, sent: StopFilter) -> list[bytes]:
        """The last events of a choice: what is not sent yet of the text that won, and its end."""
        answer = self._reply.answer(choice)
        parts = []
        if text := sent.finish(answer.text or ""):
            whose = {"draw": answer.winner, "role": self._chat.roles[-1].name}
            parts.append(self._reply.chunk(choice, {"content": text}, malt=whose))
        details = self._reply.details(answer)
        reason = replies.finish_reason(answer)
        return [*parts, self._reply.chunk(choice, {}, reason, malt=details)]

    async def _found(self) -> AsyncIterator[Any]:
        """Events of the engine, and None from time to time; ends when the client has gone.

        Raises ApiError for a request that failed or was not answered in time.
        """
        heard = looked = time.perf_counter()
        try:
            while True:
                now = time.perf_counter()
                if now > self._deadline:
                    raise too_slow(self._seconds)
                # Also while text flows, because a server tells no writer that nobody reads.
                if now - looked >= POLL:
                    looked = now
                    if await self._request.is_disconnected():
                        return
                try:
                    found = await asyncio.wait_for(self._events.get(), POLL)
                except TimeoutError:
                    if now - heard > KEEP_ALIVE_EVERY:
                        heard = now
                        yield None
                    continue
                if isinstance(found, Failed):
                    raise found.error
                yield found
        finally:
            # However this ends, nobody waits for further turns.
            self._engine.cancel(self.ticket)

    def give_up(self) -> None:
        """The stream could not be sent."""
        self._engine.cancel(self.ticket)

    @property
    def seconds_left(self) -> float:
        return max(0.0, self._deadline - time.perf_counter())


class WholeReply(JSONResponse):
    """An answer in one piece. A reader that is too slow is left when its time is over."""

    def __init__(self, content: Any, exchange: Exchange, on_end: Callable[[int], None]):
        super().__init__(content)
        self._exchange, self._on_end = exchange, on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        status = 200
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            # In pieces, because a server takes any one piece at once, and waits before the next
            # one until the reader has taken most of it.
            async with asyncio.timeout(self._exchange.seconds_left + SENDING):
                for first in range(0, len(self.body), PIECE):
                    await _send(send, bytes(self.body[first : first + PIECE]))
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        except (TimeoutError, OSError):
            status = 499
        finally:
            self._on_end(status)


class EventStream(Response):
    """A stream of server-sent events. A reader that is too slow is left when its time is over."""

    def __init__(self, exchange: Exchange, on_end: Callable[[int], None]):
        self.status_code, self.background, self.body = 200, None, b""
        self._exchange, self._on_end = exchange, on_end
        self.init_headers({"Content-Type": "text/event-stream", "Cache-Control": "no-cache",
                           "X-Accel-Buffering": "no"})  # fmt: skip
        # The length is not known.
        self.raw_headers = [pair for pair in self.raw_headers if pair[0] != b"content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        status = 200
        events = self._exchange.stream()
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            # A little longer than the deadline, which the stream itself reports as an event.
            async with asyncio.timeout(self._exchange.seconds_left + SENDING):
                try:
                    async for part in events:
                        await _send(send, part)
                except ApiError as error:
                    # The status is sent already; clients read the error from the event.
                    status = error.status
                    await _send(send, replies.event(error.body()))
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        except (TimeoutError, OSError):
            status = 499  # the reader was too slow, or has gone
        finally:
            self._exchange.give_up()
            await events.aclose()  # type: ignore[attr-defined]
            self._on_end(status)


async def _send(send: Send, part: bytes) -> None:
    await send({"type": "http.response.body", "body": part, "more_body": True})
