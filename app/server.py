"""The API in uvicorn, with a limit on the time for a request to arrive."""

from __future__ import annotations

import asyncio
import ctypes
import socket
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from app.main import create_app
from app.requests.decode_image import decode_image
from clipsynth.services.limited_process import warm_up
from clipsynth.services.processes import listen
from clipsynth.settings import Settings

ARENAS = 2
_M_ARENA_MAX = -8  # of malloc.h


class TimeoutProtocol(H11Protocol):
    """Closes a connection without complete request headers `receive_timeout_s` after the last response."""

    receive_timeout_s = 60.0
    _due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._expect()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._expect()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        super().connection_lost(exc)

    def _expect(self) -> None:
        if self.conn.their_state is not h11.IDLE:
            self._forget()
        elif self._due is None:
            self._due = self.loop.call_later(self.receive_timeout_s, self.transport.close)

    def _forget(self) -> None:
        if self._due:
            self._due.cancel()
            self._due = None


def config(settings: Settings, **options: Any) -> uvicorn.Config:
    """Return the configuration of uvicorn."""
    protocol = type("Protocol", (TimeoutProtocol,), {"receive_timeout_s": settings.receive_timeout_s})
    return uvicorn.Config(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        http=protocol,
        ws="none",
        log_level="warning",
        timeout_graceful_shutdown=5,  # an open event stream would block it
        **options,
    )


def bound_arenas(arenas: int = ARENAS) -> bool:
    """Limit glibc's malloc to `arenas` arenas; False without glibc.

    By default each thread keeps an arena with the memory that its images used.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return bool(mallopt and mallopt(_M_ARENA_MAX, arenas))


def run(settings: Settings, fd: int | None = None) -> None:
    """Serve until SIGINT or SIGTERM.

    Args:
        fd: a listening socket; by default one is made.

    Raises:
        ServeError: the address cannot be listened on.
    """
    bound_arenas()
    if settings.metrics_port:
        listen("0.0.0.0", settings.metrics_port).close()
    listener = listen(settings.host, settings.port) if fd is None else socket.socket(fileno=fd)
    # Or the processes that decode images would hold the port.
    listener.set_inheritable(False)
    warm_up(decode_image)
    uvicorn.Server(config(settings)).run([listener])
