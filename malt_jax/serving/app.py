"""The HTTP interface: routes, limits, authorisation, and the two forms of an answer."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
import json
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from malt_jax.checks import show
from malt_jax.errors import UserError
from malt_jax.serving import replies
from malt_jax.serving.engine import Engine, Failed, Finished, Text, Ticket
from malt_jax.serving.errors import (
    AUTHENTICATION,
    OVERLOADED,
    SERVER,
    ApiError,
    closing,
    too_long,
    too_slow,
)
from malt_jax.serving.replies import Reply
from malt_jax.serving.requests import ChatRequest, find_model, parse_request
from malt_jax.serving.stops import StopFilter

POLL = 0.5
"""Seconds between two looks at whether the client is still there."""
KEEP_ALIVE_EVERY = 15.0
HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[\w.-]+)(?::\d{1,5})?", re.ASCII)
"""The header `Host`: a name or an address, and perhaps a port."""


@dataclass(frozen=True)
class Limits:
    """What one client, and all of them together, may ask for."""

    requests: int = 256
    """Requests that are answered at a time; more get status 429."""
    bytes: int = 1 << 18
    """Of a request's body; more gets status 413."""
    seconds: float = 600.0
    """Until a request must be answered; then it gets status 503."""


def is_loopback(host: str) -> bool:
    """Whether a name or address is this machine's own, which others cannot reach."""
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class Service:
    """The routes over an engine."""

    def __init__(
        self,
        engine: Engine,
        seed: int,
        fingerprint: str,
        limits: Limits,
        *,
        api_key: str | None = None,
        local: bool = True,
    ):
        """`local`: only this machine is served, by the names that it has for itself."""
        self._engine, self._chain = engine, engine.answerer.chain
        self._seed, self._fingerprint = seed, fingerprint
        self.limits, self._api_key, self._local = limits, api_key, local
        self._in_flight, self._created = 0, int(time.time())
        gauges = engine.metrics.gauges
        gauges["malt_requests_in_flight"] = lambda: self._in_flight
        gauges["malt_draws_waiting"] = lambda: engine.waiting
        gauges["malt_up"] = lambda: float(engine.alive)

    def app(self) -> Starlette:
        """The ASGI application."""

        @asynccontextmanager
        async def lifespan(app: Starlette) -> AsyncIterator[None]:
            self._engine.start()
            yield

        routes = [
            Route("/v1/chat/completions", self._guarded(self.chat), methods=["POST"]),
            Route("/v1/models", self._guarded(self.models)),
            Route("/v1/models/{name:path}", self._guarded(self.model)),
            Route("/metrics", self._guarded(self.metrics)),
            Route("/health", self.health),
        ]
        handlers: dict[Any, Any] = {HTTPException: _http_error, Exception: _failure}
        return Starlette(routes=routes, lifespan=lifespan, exception_handlers=handlers)

    def _guarded(
        self, route: Callable[[Request], Awaitable[Response]]
    ) -> Callable[[Request], Awaitable[Response]]:
        """The route behind the key, with refusals as error objects."""

        async def guarded(request: Request) -> Response:
            try:
                self._authorise(request)
                return await route(request)
            except ApiError as error:
                return _refusal(error)

        return guarded

    def _authorise(self, request: Request) -> None:
        # A page in a browser could reach this machine by a name of its own (DNS rebinding).
        host = request.headers.get("host", "")
        named = HOST.fullmatch(host)
        if self._local and not (named and is_loopback(named[1].lower())):
            raise ApiError(403, f"Host: {show(host)} is not a name of this machine.")
        if self._api_key is None:
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        # As bytes, which a header's Latin-1 keeps as they were sent, and in constant time, so that
        # the time tells nothing about the key.
        sent, key = (
            given.strip().encode("latin-1"),
            self._api_key.encode("utf-8", "surrogateescape"),
        )
        if scheme.lower() != "bearer" or not hmac.compare_digest(sent, key):
            raise ApiError(
                401, "the API key is missing or wrong: Authorization: Bearer KEY.",
                kind=AUTHENTICATION, code="invalid_api_key",
            )  # fmt: skip

    async def models(self, request: Request) -> Response:
        """Every name that `model` may have; other numbers of votes work as well."""
        entries = replies.models(self._chain, self._created)
        return JSONResponse({"object": "list", "data": entries})

    async def model(self, request: Request) -> Response:
        """One model."""
        name = request.path_params["name"]
        find_model(name, self._chain)
        return JSONResponse(replies.model(name, self._created))

    async def health(self, request: Request) -> Response:
        """Status 200 while requests are answered, else 503."""
        alive = self._engine.alive
        status = {"status": "ok" if alive else "unavailable", "in_flight": self._in_flight}
        return JSONResponse(status, 200 if alive else 503)

    async def metrics(self, request: Request) -> Response:
        """Counters for Prometheus."""
        kind = "text/plain; version=0.0.4; charset=utf-8"
        return PlainTextResponse(self._engine.metrics.text(), media_type=kind)

    async def chat(self, request: Request) -> Response:
        """Answers a request, whole or as a stream."""
        began = time.perf_counter()
        # Counted before the body is read: unread bodies take memory as well.
        if self._in_flight >= self.limits.requests:
            raise ApiError(
                429, f"{self._in_flight} requests are being answered, the most at a time; ask "
                "again in a moment.", kind=OVERLOADED, code="rate_limit_exceeded", retry_after=1,
            )  # fmt: skip
        self._in_flight += 1
        model, status, handed_over = "other", 500, False
        try:
            if not self._engine.alive:
                raise closing()
            chat = parse_request(await self._body(request), self._chain, self._seed)
            # Only names that exist, so that clients cannot make metrics without end.
            model = "malt@k" if chat.votes > 1 else chat.model
            await self._check(chat)
            exchange = Exchange(self, request, chat, began)
            if chat.stream:
                handed_over = True
                return EventStream(exchange, lambda status: self._done(model, status, began))
            reply = await exchange.whole()
            status = 200
            return JSONResponse(reply)
        except ApiError as error:
            status = error.status
            raise
        except ClientDisconnect:
            status = 499
            return Response(status_code=499)
        finally:
            if not handed_over:
                self._done(model, status, began)

    async def _check(self, chat: ChatRequest) -> None:
        """Refuses a question that is too long, before it takes the time of the engine's thread."""
        answerer = self._engine.answerer
        params = {role.name: chat.params(role, answerer) for role in chat.roles}
        try:
            await asyncio.to_thread(answerer.check, chat.question, params, chat.said)
        except UserError as error:
            raise too_long(error) from None

    def _done(self, model: str, status: int, began: float) -> None:
        self._in_flight -= 1
        self._engine.metrics.request(model, status, time.perf_counter() - began)

    async def _body(self, request: Request) -> bytes:
        """The request's body, refused as soon as it is too large, too slow or of another type."""
        # A page in a browser may post other types to this machine without asking it first.
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise ApiError(415, f"Content-Type: found {kind!r}, expected application/json.")
        body, most = bytearray(), self.limits.bytes
        try:
            async with asyncio.timeout(min(60.0, self.limits.seconds)):
                async for part in request.stream():
                    body += part
                    if len(body) > most:
                        raise ApiError(413, f"the body is longer than {most:,} bytes.")
        except TimeoutError:
            raise ApiError(408, "the body did not come in time.") from None
        return bytes(body)


class Exchange:
    """One request at work in the engine."""

    def __init__(self, service: Service, request: Request, chat: ChatRequest, began: float):
        self._service, self._request, self._chat = service, request, chat
        self._deadline = began + service.limits.seconds
        answerer = service._engine.answerer
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
        self._reply = Reply(chat, self.ticket.draws, service._fingerprint)
        service._engine.submit(self.ticket)

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
        for choice in range(chat.choices):
            yield self._reply.chunk(choice, {"role": "assistant", "content": ""})
        async for found in self._found():
            if found is None:
                yield replies.KEEP_ALIVE
            elif isinstance(found, Text) and found.text:
                # With several votes nobody knows yet which draw will be the answer.
                is_answer = chat.votes == 1 and found.role == last
                choice, draw = divmod(found.draw, chat.votes)
                text = answers[choice].add(found.text) if is_answer else found.text
                if text:
                    delta = {"content" if is_answer else "reasoning_content": text}
                    whose = {"draw": draw, "role": found.role}
                    yield self._reply.chunk(choice, delta, malt=whose)
            elif isinstance(found, Finished):
                choice = found.draw // chat.votes
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
                    raise too_slow(self._service.limits.seconds)
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
            self._service._engine.cancel(self.ticket)

    def give_up(self) -> None:
        """The stream could not be sent."""
        self._service._engine.cancel(self.ticket)

    @property
    def seconds_left(self) -> float:
        return max(0.0, self._deadline - time.perf_counter())


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
            async with asyncio.timeout(self._exchange.seconds_left + 5):
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


def _refusal(error: ApiError) -> Response:
    return JSONResponse(error.body(), error.status, headers=error.headers)


async def _http_error(request: Request, error: HTTPException) -> Response:
    """Unknown paths and methods as error objects."""
    message = f"{request.method} {json.dumps(request.url.path)}: {error.detail}"
    headers = dict(error.headers or {})
    return JSONResponse(ApiError(error.status_code, message).body(), error.status_code, headers)


async def _failure(request: Request, error: Exception) -> Response:
    """What went wrong here as an error object; the log has it with its traceback."""
    message = "the server has failed; its log says why."
    return _refusal(ApiError(500, message, kind=SERVER, code="internal_error"))
