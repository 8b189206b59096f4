"""Clients that read nothing, and more connections than the process may have."""

from __future__ import annotations

import contextlib
import itertools
import resource
import socket

import pytest

from app import connections
from app.connections import PROBE_CONNECTIONS, connection_limit
from clipsynth.services.processes import wait_until
from tests.support.api_server import api_server

LARGE = "/docs/static/swagger-ui-bundle.js"


def ask(port, path, *, times=1, read=True):
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(10)
    connection.connect(("127.0.0.1", port))
    connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode() * times)
    if not read:
        connection.recv(1)  # its answer has begun
        return connection
    with connection:
        return connection.recv(200).decode()


def cut_off(connection):
    """Read all that comes; return whether the service ended the connection before the end of ten files."""
    size = 0
    with contextlib.suppress(ConnectionError):
        while data := connection.recv(65536):
            size += len(data)
    return size < 10_000_000


def test_a_client_that_does_not_read_is_cut_off(redis_url, tmp_path):
    with api_server(redis_url, tmp_path, send_timeout_s=0.2, max_connections=1) as port:
        silent = ask(port, LARGE, times=10, read=False)  # more than the buffers of sockets hold
        assert wait_until(lambda: " 200 " in ask(port, "/v1/models"), timeout_s=10)
        assert cut_off(silent)


def test_at_the_limit_a_client_that_does_not_read_makes_room(redis_url, tmp_path, monkeypatch):
    monkeypatch.setattr(connections, "STALLED_S", 0.1)
    monkeypatch.setattr(connections, "LOOK_S", 0.1)
    with api_server(redis_url, tmp_path, max_connections=2) as port:
        held = [ask(port, LARGE, times=10, read=False) for _ in range(2)]
        assert wait_until(lambda: " 200 " in ask(port, "/v1/models"), timeout_s=10)
        assert True in list(map(cut_off, held))


def test_at_the_limit_an_idle_connection_makes_room(redis_url, tmp_path, monkeypatch):
    monkeypatch.setattr(connections, "IDLE_S", 0)
    with api_server(redis_url, tmp_path, max_connections=2) as port:
        idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(2)]
        assert wait_until(lambda: " 200 " in ask(port, "/v1/models"), timeout_s=10)
        for connection in idle:
            connection.close()


def test_probes_are_answered_at_the_limit_of_connections(redis_url, tmp_path, monkeypatch):
    monkeypatch.setattr(connections, "STALLED_S", 3600)
    with api_server(redis_url, tmp_path, max_connections=2) as port:
        held = [ask(port, LARGE, times=10, read=False) for _ in range(2)]
        assert wait_until(lambda: " 503 " in ask(port, "/v1/models"), timeout_s=10)
        flood = [socket.create_connection(("127.0.0.1", port)) for _ in range(2 * PROBE_CONNECTIONS)]
        assert " 200 " in ask(port, "/healthz")
        assert " 200 " in ask(port, "/livez")
        for connection in held + flood:
            connection.close()
        assert wait_until(lambda: " 200 " in ask(port, "/v1/models"), timeout_s=10)


@pytest.mark.parametrize(
    ("files", "expected"), [(resource.RLIM_INFINITY, (1000, 128)), (220, (40, 27)), (10, (1, 1))]
)
def test_connections_leave_room_for_files(monkeypatch, files, expected):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (files, files))
    assert connection_limit(1000) == expected


def answer(port, *parts):
    """Send parts until the service ends the connection; return all that it answered."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        with contextlib.suppress(ConnectionError):
            for part in parts:
                connection.sendall(part)
        received = b""
        with contextlib.suppress(ConnectionError):
            while data := connection.recv(65536):
                received += data
        return received.decode()


HEAD = b"POST /v1/generations HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n"


@pytest.mark.parametrize(
    "start",
    [b"GET /livez?", b"GET /livez HTTP/1.1\r\nX: ", HEAD + b"\r\n1;", HEAD + b"\r\n0\r\nX: "],
    ids=["url", "header", "chunk", "trailer"],
)
def test_what_is_no_body_has_a_largest_size(redis_url, tmp_path, start):
    with api_server(redis_url, tmp_path) as port:
        endless = itertools.repeat(b"x" * 65_536, 100)
        assert " 400 " in answer(port, start, *endless) or start.startswith(HEAD)
        assert " 200 " in ask(port, "/livez")


def test_a_connection_queues_few_requests(redis_url, tmp_path):
    one = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with api_server(redis_url, tmp_path) as port:
        last = one.replace(b"Host", b"Connection: close\r\nHost")
        assert answer(port, one * 9 + last).count(" 200 ") == 10
        assert " 400 " in answer(port, one * 1000)


LAST = b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


@pytest.mark.parametrize("protocol", [b"h2c", b"websocket"])
def test_a_request_for_another_protocol_keeps_its_body(redis_url, tmp_path, protocol):
    """As HTTP clients of Java and `curl --http2` send it."""
    body = b'{"prompt": 7}'
    head = b"POST /v1/generations HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    head += b"Connection: Upgrade\r\nUpgrade: " + protocol + b"\r\nContent-Length: %d\r\n\r\n" % len(body)
    with api_server(redis_url, tmp_path) as port:
        first, _, second = answer(port, head + body + head[:50], head[50:] + body + LAST).partition(
            "}HTTP/1.1"
        )
        assert "/prompt" in first
        assert "/prompt" in second
        assert second.endswith('{"status":"ok"}')
        assert " 400 " in answer(port, b"CONNECT localhost:80 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert " 400 " in answer(port, (head + body) * 100)


def test_head_keeps_the_connection(redis_url, tmp_path):
    with api_server(redis_url, tmp_path) as port:
        answers = answer(port, LAST.replace(b"GET", b"HEAD").replace(b"Connection: close\r\n", b"") + LAST)
    assert answers.count(" 200 ") == 2
    assert answers.count("ok") == 1


@pytest.mark.parametrize("hosts", [b"", b"Host: localhost\r\nHost: other\r\n"])
def test_a_request_has_one_host(redis_url, tmp_path, hosts):
    with api_server(redis_url, tmp_path) as port:
        assert " 400 " in answer(port, b"GET /livez HTTP/1.1\r\n" + hosts + b"\r\n")
