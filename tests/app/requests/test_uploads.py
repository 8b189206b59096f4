"""Large bodies: counted while they come, kept in a file, and given back."""

from __future__ import annotations

import base64
import contextlib
import errno
import socket
from tempfile import SpooledTemporaryFile

import pytest
from redis import Redis
from starlette import formparsers

from app.requests import upload
from clipsynth.redis_keys import SHARES
from clipsynth.services.processes import wait_until
from tests.support.api_server import api_server
from tests.support.api_service import check_problem, image

LARGE = 400_000


@pytest.fixture
def port(redis_url, tmp_path):
    with api_server(redis_url, tmp_path, max_upload_bytes_per_key=1_000_000) as server:
        yield server


def head(length=LARGE, kind="application/json"):
    size = f"Content-Length: {length}" if length else "Transfer-Encoding: chunked"
    lines = ["POST /v1/generations HTTP/1.1", "Host: localhost", f"Content-Type: {kind}", size]
    return "\r\n".join([*lines, "", ""]).encode()


def begin(port):
    """Return a connection with the beginning of an upload."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=60)
    connection.sendall(head() + b"{")
    return connection


def answer(connection):
    """Return the status of the answer; None if there is none for a while."""
    received = b""
    with contextlib.suppress(TimeoutError):
        while b"\r\n" not in received:
            received += connection.recv(65536)
    return int(received.split()[1]) if received else None


def begun(port):
    with begin(port) as connection:
        connection.settimeout(60)
        return answer(connection)


def whole(port):
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(head() + b'{"image":"' + b"A" * (LARGE - 12) + b'"}')
        return answer(connection)


def test_slow_uploads_of_a_key_are_bounded(port, redis_url):
    held = [begin(port), begin(port)]
    with Redis.from_url(redis_url) as redis:
        name = f"{SHARES}upload_bytes:anonymous"
        assert wait_until(lambda: redis.zcard(name) == 2, timeout_s=60)
        assert begun(port) == 429
        for connection in held:
            connection.close()
        assert wait_until(lambda: not redis.exists(name), timeout_s=60)
    assert whole(port) == 415


def test_a_body_of_unknown_length_is_counted_as_it_comes(port):
    form = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n' + b"a" * 300_000
    chunk = f"{len(form):x}\r\n".encode() + form + b"\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(head(0, "multipart/form-data; boundary=x") + chunk)
        assert answer(connection) == 429


def test_a_large_json_body_is_in_a_file_and_given_back(serve, monkeypatch):
    rolled = []

    class File(SpooledTemporaryFile):
        def rollover(self):
            rolled.append(self)
            super().rollover()

    monkeypatch.setattr(upload, "SpooledTemporaryFile", File)
    service = serve()
    images = [base64.b64encode(image("PNG", (300, 300))).decode() for _ in range(2)]
    made = service.client.post("/v1/generations", json={"prompts": [{"image": i} for i in images]})
    assert made.status_code == 202, made.text
    assert {file.closed for file in rolled} == {True}
    uploads = service.client.app.state.services.budgets.uploads
    assert wait_until(lambda: uploads.used("anonymous") == uploads.held == 0, timeout_s=10)


@pytest.mark.parametrize("kind", ["json", "form"])
def test_a_full_disk_refuses_large_bodies(serve, monkeypatch, kind):
    class File(SpooledTemporaryFile):
        def rollover(self):
            raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(upload, "SpooledTemporaryFile", File)
    monkeypatch.setattr(formparsers, "SpooledTemporaryFile", File)
    text = "A" * 2_000_000
    body = {"json": {"image": text}} if kind == "json" else {"files": {"image": ("a", text)}}
    check_problem(serve().client.post("/v1/generations", **body), 503, "storage_full")
