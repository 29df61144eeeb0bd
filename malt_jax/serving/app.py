"""The HTTP interface: routes, limits, authorisation."""

from __future__ import annotations

import asyncio
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

from malt_jax.checks import show
from malt_jax.errors import UserError
from malt_jax.serving import replies
from malt_jax.serving.engine import Engine
from malt_jax.serving.errors import (
    AUTHENTICATION,
    OVERLOADED,
    SERVER,
    ApiError,
    closing,
    too_long,
)
from malt_jax.serving.exchange import EventStream, Exchange, WholeReply
from malt_jax.serving.requests import ChatRequest, find_model, parse_request

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
        app = Starlette(routes=routes, lifespan=lifespan, exception_handlers=handlers)
        # Clients do not send a body again where a redirect leads; a path with a slash too many is
        # unknown like any other.
        app.router.redirect_slashes = False
        return app

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
            self._engine.metrics.request("other", 429, time.perf_counter() - began)
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
            unread = await self._check(chat)
            exchange = Exchange(
                self._engine, request, chat, began=began, seconds=self.limits.seconds,
                fingerprint=self._fingerprint, unread=unread,
            )  # fmt: skip
            if chat.stream:
                handed_over = True
                return EventStream(exchange, lambda status: self._done(model, status, began))
            reply = await exchange.whole()
            whole = WholeReply(reply, exchange, lambda status: self._done(model, status, began))
            handed_over = True
            return whole
        except ApiError as error:
            status = error.status
            raise
        except ClientDisconnect:
            status = 499
            return Response(status_code=499)
        finally:
            if not handed_over:
                self._done(model, status, began)

    async def _check(self, chat: ChatRequest) -> list[str]:
        """Refuses a question that is too long, before it takes the time of the engine's thread.

        Returns its characters that a model it is asked of cannot read.
        """
        answerer = self._engine.answerer
        params = {role.name: chat.params(role, answerer) for role in chat.roles}

        def check() -> list[str]:
            answerer.check(chat.question, params, chat.said)
            return answerer.unread(chat.question, chat.roles)

        try:
            return await asyncio.to_thread(check)
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
