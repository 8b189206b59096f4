"""`/metrics` and `/healthz` of a process on its own port. For closed networks: they need no key."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any
from wsgiref.simple_server import WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer, _SilentHandler

from clipsynth.errors import ServeError

logger = logging.getLogger(__name__)
# A process whose loop stands for this time is stuck.
SILENT_S = 60.0


class Heartbeat:
    """Whether a process works: it calls `beat` in its loop."""

    def __init__(self) -> None:
        self.beat()

    def beat(self) -> None:
        """Note that it works now."""
        self._at = time.monotonic()

    def is_alive(self) -> bool:
        """Return whether the last beat is less than `SILENT_S` ago."""
        return time.monotonic() - self._at < SILENT_S


class _Server6(ThreadingWSGIServer):
    address_family = socket.AF_INET6


def expose(
    registry: CollectorRegistry, port: int, host: str = "127.0.0.1", *, healthy: Callable[[], bool]
) -> WSGIServer:
    """Serve a registry, and whether the process is `healthy` (200 or 503), in threads; return the server.

    Raises:
        ServeError: the port is taken.
    """
    metrics: Callable[..., Iterable[bytes]] = make_wsgi_app(registry)

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/healthz":
            is_healthy = healthy()
            start_response(
                "200 OK" if is_healthy else "503 Service Unavailable", [("Content-Type", "text/plain")]
            )
            return [b"ok\n" if is_healthy else b"stuck\n"]
        return metrics(environ, start_response)

    kind = _Server6 if ":" in host else ThreadingWSGIServer
    try:
        server = make_server(host.strip("[]"), port, answer, kind, _SilentHandler)
    except OSError as error:
        raise ServeError(f"CLIPSYNTH_METRICS_PORT {port} cannot be listened on: {error}") from error
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    logger.info("metrics on port %d", server.server_port)
    return server
