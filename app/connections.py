"""Connections of uvicorn: time to send a request and to read its answer, and their number."""

from __future__ import annotations

import asyncio
import resource
import sys

import httptools
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app.responses.problems import STATUS, problem

# Paths that are answered whatever the number of connections.
PROBES = frozenset({"/healthz", "/livez"})
# Connections over the limit, for probes; each has this many seconds for its request.
PROBE_CONNECTIONS, PROBE_S = 16, 5.0
# At the limit, a client that has read nothing for this time loses its connection; looked at every LOOK_S.
STALLED_S, LOOK_S = 1.0, 0.5
# So does one without a request since this time.
IDLE_S = 1.0
# Connections that are accepted at once.
MAX_BURST = 128
# Most bytes of an unfinished head, or of anything else that is no body, and most requests that wait for the
# answer of an earlier one on their connection. The parser itself knows no limit.
MAX_HEAD, MAX_PIPELINED = 65_536, 16
# Files of a process beside its connections, each of which may send a file.
OTHER_FILES = 96


def connection_limit(most: int) -> tuple[int, int]:
    """Return the most connections, at most `most`, and how many may come at once.

    Each may open a file, too. Those that come at once are open before any is refused.
    """
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if files == resource.RLIM_INFINITY:
        return most, MAX_BURST
    burst = max(1, min(MAX_BURST, files // 8))
    return max(1, min(most, (files - OTHER_FILES - PROBE_CONNECTIONS - burst) // 2)), burst


class LimitedProtocol(HttpToolsProtocol):
    """Closes connections whose client is slow or has a long head; over the limit only probes are answered.

    A client has `receive_timeout_s` after the last response to send complete headers, and as long to read a
    part of an answer that fills the buffers.
    """

    receive_timeout_s = 60.0
    send_timeout_s = 60.0
    max_connections = 1000
    is_probe = False
    began_at = 0.0
    stalled_since: float | None = None
    _data = b""
    # Bytes received since the last head, part of a body, or end of a request.
    _unfinished = 0
    _due: asyncio.TimerHandle | None = None
    _look: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.max_connections:
            self._make_room()
        if len(self.connections) > self.max_connections:
            self.is_probe, self.receive_timeout_s = True, min(PROBE_S, self.receive_timeout_s)
            self.app = _only_probes(self.app)
            probes = [c for c in self._others() if c.is_probe]
            if len(probes) >= PROBE_CONNECTIONS:
                min(probes, key=lambda c: c.began_at).transport.abort()
        self.began_at = self.loop.time()
        self._expect()
        self._look_later()

    def data_received(self, data: bytes) -> None:
        self._data = data
        self._unfinished += len(data)
        super().data_received(data)
        if self._unfinished > MAX_HEAD and not self.transport.is_closing():
            self.send_400_response("the head of the request is too long")
        self._expect()

    def on_headers_complete(self) -> None:
        self._unfinished = 0
        # RFC 9112, section 3.2.
        hosts = [name for name, _ in self.headers].count(b"host")
        if hosts > 1 or (not hosts and self.parser.get_http_version() == "1.1"):
            raise ValueError("not one Host")
        if len(self.pipeline) >= MAX_PIPELINED:
            raise ValueError("too many requests at once")
        super().on_headers_complete()

    def _should_upgrade(self) -> bool:
        return True

    def handle_websocket_upgrade(self) -> None:
        """Read a request for another protocol again, as one for this protocol (RFC 9110, section 7.8)."""
        # The parser takes no body after such a head.
        stopped = sys.exception()
        assert isinstance(stopped, httptools.HttpParserUpgrade)
        method = self.parser.get_method()
        if method == b"CONNECT":
            self.send_400_response("this is no proxy")
            return
        head = [method, b" ", self.url, b" HTTP/1.1\r\n"]
        for name, value in self.headers:
            if name != b"upgrade":
                head += [name, b": ", value, b"\r\n"]
        self.parser = httptools.HttpRequestParser(self)
        self.data_received(b"".join([*head, b"\r\n", self._data[stopped.args[0] :]]))

    def on_body(self, body: bytes) -> None:
        self._unfinished = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._unfinished = 0
        super().on_message_complete()

    def resume_writing(self) -> None:
        super().resume_writing()
        self.stalled_since = None

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._expect()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        if self._look:
            self._look.cancel()
        super().connection_lost(exc)

    def _expect(self) -> None:
        if not self._awaits_request():
            self._forget()
        elif self._due is None:
            self._due = self.loop.call_later(self.receive_timeout_s, self.transport.close)

    def _forget(self) -> None:
        if self._due:
            self._due.cancel()
            self._due = None

    def _check_progress(self) -> None:
        """Note whether an answer waits for its client to read, and close the connection after a while."""
        now = self.loop.time()
        if not self.transport.get_write_buffer_size():
            self.stalled_since = None
        elif self.stalled_since is None:
            self.stalled_since = now
        elif now - self.stalled_since >= self.send_timeout_s:
            self.transport.abort()
            return
        self._look_later()

    def _look_later(self) -> None:
        self._look = self.loop.call_later(min(LOOK_S, self.send_timeout_s / 4), self._check_progress)

    def _make_room(self) -> None:
        """Close the connection whose client has read nothing for longest, else one without a request."""
        stalled = {c: c.stalled_since for c in self._others() if c.stalled_since is not None}
        now = self.loop.time()
        idle = {c: c.began_at for c in self._others() if c._is_idle() and now - c.began_at >= IDLE_S}
        slowest = min(stalled, key=stalled.__getitem__, default=None)
        if slowest and now - stalled[slowest] < STALLED_S:
            slowest = None
        if leaves := slowest or min(idle, key=idle.__getitem__, default=None):
            leaves.transport.abort()
            self.connections.discard(leaves)

    def _is_idle(self) -> bool:
        return self._awaits_request() and not self.transport.get_write_buffer_size()

    def _awaits_request(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _others(self) -> list[LimitedProtocol]:
        return [c for c in self.connections if isinstance(c, LimitedProtocol) and c is not self]


def _only_probes(app: ASGIApp) -> ASGIApp:
    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in PROBES:
            refused = problem(STATUS["overloaded"], "overloaded", "there are too many connections")
            refused.headers["Connection"] = "close"
            await refused(scope, receive, send)
        else:
            await app(scope, receive, send)

    return answer
