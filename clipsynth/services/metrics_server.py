"""What a process tells Prometheus and its supervisor over a port of its own: `/metrics` and `/healthz`. For closed networks: no key is asked for."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app

from clipsynth.errors import ServeError

logger = logging.getLogger(__name__)


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Silent(WSGIRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def expose(registry: CollectorRegistry, port: int, *, healthy: Callable[[], bool]) -> WSGIServer:
    """Serve a registry, and whether the process is `healthy` (200 or 503), in threads; return the server, whose `server_port` is the port taken.

    Raises:
        ServeError: the port is taken.
    """
    metrics: Callable[..., Iterable[bytes]] = make_wsgi_app(registry)

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/healthz":
            well = healthy()
            start_response("200 OK" if well else "503 Service Unavailable", [("Content-Type", "text/plain")])
            return [b"ok\n" if well else b"stuck\n"]
        return metrics(environ, start_response)

    try:
        server = make_server("0.0.0.0", port, answer, server_class=_Server, handler_class=_Silent)
    except OSError as error:
        raise ServeError(f"CLIPSYNTH_METRICS_PORT {port} cannot be listened on: {error}") from error
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    logger.info("metrics on port %d", server.server_port)
    return server
