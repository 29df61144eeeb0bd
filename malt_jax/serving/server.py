"""The server process: a socket, uvicorn, and a shutdown that lets answers finish."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator

import uvicorn

from malt_jax.errors import UserError
from malt_jax.serving.app import Service
from malt_jax.serving.engine import Engine
from malt_jax.storage.signals import signal_received


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

    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None]):
        super().__init__(config)
        self._on_ready = on_ready

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # the signals are those of the command

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_ready()

    async def on_tick(self, counter: int) -> bool:
        return signal_received() or await super().on_tick(counter)


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
        timeout_graceful_shutdown=max(1, round(grace)),
        timeout_keep_alive=15,
        server_header=False,
    )
    server = _Server(config, on_ready)
    try:
        asyncio.run(server.serve(sockets=[listener]))
    finally:
        engine.close(1.0)
        listener.close()
