"""Bodies that are huge, slow or never end, against the API as it is served: uvicorn on a socket."""

from __future__ import annotations

import contextlib
import http.client
import socket
import time

import pytest

from tests.support.api_server import api_server

GB = 1_000_000_000
JSON = b"Content-Type: application/json\r\n"
FORM = b"Content-Type: multipart/form-data; boundary=x\r\n"


@pytest.fixture
def port(request, redis_url, tmp_path):
    """Serve with limits that are soon reached: bodies of 100 kB, and 0.1 s or what a test says."""
    options = {
        "receive_timeout_s": getattr(request, "param", 0.1),
        "max_image_bytes": 100_000,
        "max_form_image_bytes": 100_000,
        "max_video_bytes": 200_000,
    }
    with api_server(redis_url, tmp_path, **options) as server:
        yield server


def rest(connection):
    """Return what arrives until the service closes."""
    answer = b""
    with contextlib.suppress(ConnectionError):
        while data := connection.recv(65536):
            answer += data
    return answer


def exchange(port, head, *pieces):
    """Send pieces until the service closes; return its whole answer and how much was sent."""
    sent = 0
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        try:
            connection.sendall(head)
            for piece in pieces:
                connection.sendall(piece)
                sent += len(piece)
        except ConnectionError:
            pass
        return rest(connection), sent


def post(path="/v1/generations", headers=b""):
    return f"POST {path} HTTP/1.1\r\nHost: localhost\r\n".encode() + headers + b"\r\n"


def check(answer, status, code):
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 " + str(status).encode()), answer[:500]
    assert b"connection: close" in head.lower()
    assert f'"code":"{code}"'.encode() in body


@pytest.mark.parametrize("path", ["/v1/generations", "/v1/replay"])
def test_a_large_content_length_is_rejected(port, path):
    answer, _ = exchange(port, post(path, JSON + f"Content-Length: {GB}\r\n".encode()))
    check(answer, 413, "payload_too_large")


@pytest.mark.parametrize("port", [5.0], indirect=True)  # a busy machine may be slow to read what it refuses
@pytest.mark.parametrize(
    ("path", "kind"), [("/v1/generations", JSON), ("/v1/generations", FORM), ("/v1/replay", JSON)]
)
def test_a_large_chunked_body_is_rejected_early(port, path, kind):
    piece = b"ffff\r\n" + b" " * 0xFFFF + b"\r\n"
    first = (
        b'31\r\n--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n\r\n'
        if kind == FORM
        else b"1\r\n{\r\n"
    )
    head = post(path, kind + b"Transfer-Encoding: chunked\r\n") + first
    answer, sent = exchange(port, head, *(piece for _ in range(GB // len(piece))))
    assert sent < 100_000_000  # the sockets hold some of it
    assert not answer or b"HTTP/1.1 413" in answer  # a client that goes on sending may miss it


def test_a_sender_of_too_much_text_gets_the_answer(port):
    """The rest of the body is received, so that the connection does not break before the answer."""
    text = b'{"prompt":"' + b"a" * 900_000 + b'"}'
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(post(headers=JSON + b"Content-Length: %d\r\n" % len(text)) + text)
        answer = connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize("port", [60.0], indirect=True)
@pytest.mark.parametrize(("method", "status"), [(b"TRACE", 405), (b"PUT", 405), (b"DELETE", 405)])
def test_a_small_body_of_a_refused_request_is_received(port, method, status):
    """The connection neither breaks nor closes, so the next request can follow."""
    head = method + b" /v1/sound-generation HTTP/1.1\r\nHost: localhost\r\n" + JSON
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(head + b"Content-Length: 13\r\n\r\n")
        connection.sendall(b'{"text": "a"}')
        answer = connection.recv(65536)
        assert answer.startswith(b"HTTP/1.1 %d" % status)
        assert b"connection: close" not in answer.lower()
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
        while b"HTTP/1.1 200" not in answer:
            more = connection.recv(65536)
            assert more
            answer += more


@pytest.mark.parametrize("kind", [JSON, FORM])
@pytest.mark.parametrize("length", [b"Content-Length: 100\r\n", b"Transfer-Encoding: chunked\r\n"])
def test_an_incomplete_body_times_out(port, kind, length):
    begun = b"--x\r\n" if kind == FORM else b"{ "
    chunk = f"{len(begun):x}\r\n".encode() + begun + b"\r\n" if b"chunked" in length else begun
    answer, _ = exchange(port, post(headers=kind + length), chunk)
    check(answer, 408, "receive_timeout")


def test_a_body_of_single_bytes_times_out(port):
    """Each byte comes before the time is over; all together do not."""
    with socket.create_connection(("127.0.0.1", port), timeout=0.02) as connection:
        connection.sendall(post(headers=JSON + b"Content-Length: 1000\r\n"))
        for _ in range(500):
            try:
                assert b" 408 " in connection.recv(65536)
                return
            except TimeoutError:
                connection.sendall(b" ")
    pytest.fail("it was waited for")


VIDEO = b'--x\r\nContent-Disposition: form-data; name="video"; filename="a.mp4"\r\n\r\n'


def test_a_large_video_is_named_before_it_is_sent(port):
    head = post(headers=FORM + f"Content-Length: {GB}\r\n".encode())
    answer, sent = exchange(port, head, VIDEO)
    check(answer, 413, "video_too_large")
    assert sent < 1000


def drip(port, times):
    """Send single bytes of a video until the answer comes; return it, or b"" after `times` bytes."""
    with socket.create_connection(("127.0.0.1", port), timeout=0.02) as connection:
        connection.sendall(post(headers=FORM + b"Content-Length: 100000\r\n") + VIDEO)
        for _ in range(times):
            try:
                answer = connection.recv(65536)
            except TimeoutError:
                connection.sendall(b" ")
            else:
                connection.settimeout(10)
                return answer + rest(connection)
    return b""


@pytest.mark.parametrize("port", [0.5], indirect=True)
def test_the_time_for_a_form_counts_from_its_last_bytes(port):
    assert drip(port, 40) == b""


@pytest.mark.parametrize("port", [0.05], indirect=True)
def test_a_form_has_a_time_for_all_its_bytes(port):
    check(drip(port, 500), 408, "receive_timeout")


@pytest.mark.parametrize("head", [b"", b"GET /heal", b"GET /healthz HTTP/1.1\r\nX-A: 1\r\n"])
def test_an_incomplete_request_closes_the_connection(port, head):
    assert exchange(port, head) == (b"", 0)


def test_an_unread_body_closes_the_connection(port):
    answer, _ = exchange(port, b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n")
    assert b"HTTP/1.1 200" in answer


@pytest.mark.parametrize("port", [1.0], indirect=True)
def test_the_receive_timeout_counts_per_request(port):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.connect()
    opened = connection.sock
    for _ in range(3):
        connection.request("GET", "/healthz")
        assert connection.getresponse().read() == b'{"status":"ok"}'
        time.sleep(0.4)  # all of them take longer than one may
    assert connection.sock is opened
    connection.close()
