"""The API in uvicorn."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import uvicorn

from app.connections import LimitedProtocol, connection_limit
from app.main import create_app
from app.memory import bound_arenas
from app.requests.decode_image import decode_image
from clipsynth.services.limited_process import warm_up
from clipsynth.services.processes import BACKLOG, listen
from clipsynth.settings import Settings

# Between two looks whether to stop; uvicorn looks ten times a second.
TICK_S = 0.5
# Bytes of an answer that the system takes before the client reads; by default up to 4 MB a connection.
SEND_BUFFER = 131_072


def config(settings: Settings, **options: Any) -> uvicorn.Config:
    """Return the configuration of uvicorn."""
    max_connections, burst = connection_limit(settings.max_connections)
    limits = {
        "receive_timeout_s": settings.receive_timeout_s,
        "send_timeout_s": settings.send_timeout_s,
        "max_connections": max_connections,
    }
    protocol = type("Protocol", (LimitedProtocol,), limits)
    return uvicorn.Config(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        http=protocol,
        backlog=burst,
        ws="none",
        log_level="warning",
        timeout_graceful_shutdown=5,  # an open event stream would block it
        **options,
    )


class _Server(uvicorn.Server):
    """Lets more connections wait for their turn than it accepts at once, and wakes up seldom while idle."""

    async def main_loop(self) -> None:
        while not await self.on_tick(0):
            await asyncio.sleep(TICK_S)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listener in sockets or ():
            listener.listen(BACKLOG)


def run(settings: Settings, fd: int | None = None) -> None:
    """Serve until SIGINT or SIGTERM.

    Args:
        fd: a listening socket; by default one is made.

    Raises:
        ServeError: the address cannot be listened on.
    """
    bound_arenas()
    if settings.metrics_port:
        listen(settings.metrics_address, settings.metrics_port).close()
    listener = listen(settings.host, settings.port) if fd is None else socket.socket(fileno=fd)
    # Its connections inherit this.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
    # Or the processes that decode images would hold the port.
    listener.set_inheritable(False)
    warm_up(decode_image)
    _Server(config(settings)).run([listener])
