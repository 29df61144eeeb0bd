"""The server process: a socket, uvicorn, and a shutdown that lets answers finish."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from malt_jax.errors import UserError
from malt_jax.serving.app import Service
from malt_jax.serving.engine import Engine
from malt_jax.storage.signals import signal_received

HEAD_SECONDS = 30.0
"""A connection is closed if the line and headers of its next request take longer."""
HEAD_BYTES = 1 << 16
"""The longest line and headers of a request; more gets status 400."""
IDLE_CONNECTIONS = 512
"""Connections beside those whose request is answered; with more, every request gets status 503."""
REFUSING = 5
"""Seconds in which clients are told that the server ends."""


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one. Raises UserError if that cannot be had."""
    if not 0 <= port < 1 << 16:
        raise UserError(f"--port: found {port}, allowed: 0 (a free one) to 65535.")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, UnicodeError) as error:
        raise UserError(
            f"--port: {host}, port {port} cannot be listened on ({error}); choose another."
        ) from None


class _Server(uvicorn.Server):
    """Stops on the signals that `graceful_stop` records, and says when it is ready."""

    def __init__(
        self, config: uvicorn.Config, engine: Engine, grace: float, on_ready: Callable[[], None]
    ):
        super().__init__(config)
        self._engine, self._grace, self._on_ready = engine, grace, on_ready

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # the signals are those of the command

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_ready()

    async def on_tick(self, counter: int) -> bool:
        return signal_received() or await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # While the event loop still runs, so that clients whose time is over are told so.
        over = asyncio.get_running_loop().call_later(self._grace, self._engine.give_up)
        await super().shutdown(sockets)
        over.cancel()


class _Protocol(H11Protocol):
    """HTTP over one connection, which is closed if its next request does not come in time.

    By itself uvicorn waits for ever for a first request, and for the rest of one that has begun.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_request(None)

    def on_response_complete(self) -> None:
        self._await_request(self.cycle)
        super().on_response_complete()

    def _await_request(self, before: RequestResponseCycle | None) -> None:
        def late() -> None:
            if self.cycle is before:
                self.transport.close()

        self.loop.call_later(HEAD_SECONDS, late)


def serve(
    service: Service,
    engine: Engine,
    listener: socket.socket,
    *,
    grace: float,
    on_ready: Callable[[], None],
) -> None:
    """Serves until a signal comes, then lets what has begun finish for `grace` seconds."""
    config = uvicorn.Config(
        service.app(),
        log_level="warning",
        access_log=False,
        lifespan="on",
        timeout_graceful_shutdown=round(grace) + REFUSING,
        timeout_keep_alive=15,
        http=_Protocol,
        ws="none",
        h11_max_incomplete_event_size=HEAD_BYTES,
        limit_concurrency=service.limits.requests + IDLE_CONNECTIONS,
        server_header=False,
    )
    server = _Server(config, engine, grace, on_ready)
    try:
        asyncio.run(server.serve(sockets=[listener]))
    finally:
        engine.close(1.0)
        listener.close()
