"""Requests to addresses that clients name: which are refused, and that no second lookup is made."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
import subprocess
import threading

import pytest

from clipsynth.security.safe_http import HostUnreachable, UrlRefused, ask, check_url, is_public
from tests.support.http_server import listening


def post(url, **options):
    return asyncio.run(ask("POST", url, headers={}, **{"timeout_s": 5, "allow_loopback": True, **options}))


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.215.14", True),
        ("2606:2800:21f:cb07:6820:80da:af6b:8b2c", True),
        ("::ffff:93.184.215.14", True),
        ("127.0.0.1", False),
        ("127.9.9.9", False),
        ("0.0.0.0", False),
        ("10.0.0.1", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("224.0.0.1", False),
        ("240.0.0.1", False),
        ("255.255.255.255", False),
        ("::1", False),
        ("::", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:169.254.169.254", False),
        ("fe80::1", False),
        ("fc00::1", False),
        ("fec0::1", False),
        ("ff02::1", False),
        ("64:ff9b::7f00:1", False),
        ("2002:7f00:1::", False),
        ("2001:0:7f00:1::", False),
        ("::127.0.0.1", False),
        # Versions of Python differ about these.
        ("192.0.0.9", False),
        ("192.88.99.1", False),
        ("64:ff9b:1::7f00:1", False),
        ("2001:4:112::1", False),
        ("3fff::1", False),
        ("5f00::1", False),
    ],
)
def test_only_public_addresses_are_public(address, public):
    assert is_public(ipaddress.ip_address(address)) is public


@pytest.mark.parametrize(
    "url",
    [
        "",
        "https://",
        "https:///x",
        "http://example.org/",
        "ftp://example.org/",
        "file:///etc/passwd",
        "https://user@example.org/",
        "https://user:password@example.org/",
        "https://example.org/#x",
        "https://example.org:0/",
        "https://example.org:99999/",
        "https://exa mple.org/",
        "https://example.org\\@127.0.0.1/",
        "https://example.org/\r\nhost: x",
        "https://bücher.example/",
        "https://127.0.0.1/",
        "https://[::1]/",
        "https://[::ffff:10.0.0.1]/",
        "https://[fe80::1%25eth0]/",
        "https://169.254.169.254/latest/meta-data",
        "http://localhost/",
        "https://example.org/" + "x" * 2000,
    ],
)
def test_a_forbidden_url_is_rejected(url):
    with pytest.raises(UrlRefused):
        check_url(url)


def test_a_setting_allows_loopback_only():
    for url in ("http://localhost:1/", "http://127.0.0.1/", "https://[::1]/", "https://example.org/"):
        check_url(url, allow_loopback=True)
    for url in ("http://example.org/", "http://10.0.0.1/", "https://10.0.0.1/"):
        with pytest.raises(UrlRefused):
            check_url(url, allow_loopback=True)


def resolving(monkeypatch, *answers):
    """Have names resolve to each of the answers in turn; return what was asked for."""
    asked = []

    def getaddrinfo(host, port, *_, **__):
        if host in ("127.0.0.1", "::1"):
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port))]
        asked.append(host)
        addresses = answers[min(len(asked), len(answers)) - 1]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (a, port)) for a in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return asked


@pytest.mark.parametrize(
    "addresses", [["127.0.0.1"], ["169.254.169.254"], ["93.184.215.14", "10.0.0.1"], ["::ffff:127.0.0.1"]]
)
def test_a_name_of_a_private_address_is_rejected(monkeypatch, addresses):
    resolving(monkeypatch, addresses)
    with pytest.raises(UrlRefused):
        post("https://inner.example/", allow_loopback=False)


def test_a_name_is_resolved_once(monkeypatch, heard):
    asked = resolving(monkeypatch, ["127.0.0.1"], ["10.0.0.1"])
    assert post(f"http://localhost:{heard.port}/hook").status == 200
    assert asked == ["localhost"]
    assert heard.requests[0][1]["Host"] == f"localhost:{heard.port}"


def test_a_slow_name_server_blocks_no_other_work(monkeypatch):
    answered = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answered.wait(20) and [])

    async def ask_often():
        asked = [ask("GET", f"https://{n}.example/", headers={}, timeout_s=0.1) for n in range(8)]
        errors = await asyncio.gather(*asked, return_exceptions=True)
        return errors, await asyncio.to_thread(lambda: "free")  # what the loop's own threads are for

    errors, free = asyncio.run(ask_often())  # ends, though the threads do not
    assert not answered.is_set()
    assert ({type(e) for e in errors}, free) == ({HostUnreachable}, "free")
    answered.set()


def certified(tmp_path, name):
    """Return a server's TLS context for a name, and a client's that trusts it."""
    files = ["-keyout", f"{tmp_path}/key.pem", "-out", f"{tmp_path}/cert.pem"]
    subject = ["-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}"]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *files, *subject]
    subprocess.run(command, check=True, capture_output=True)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(f"{tmp_path}/cert.pem", f"{tmp_path}/key.pem")
    return server, ssl.create_default_context(cafile=f"{tmp_path}/cert.pem")


def test_tls_checks_the_name_not_the_address(monkeypatch, tmp_path):
    resolving(monkeypatch, ["127.0.0.1"])
    server, client = certified(tmp_path, "hooks.example")
    with listening(server) as heard:
        assert post(f"https://hooks.example:{heard.port}/", tls=client).status == 200
        with pytest.raises(HostUnreachable):
            post(f"https://other.example:{heard.port}/", tls=client)
        with pytest.raises(HostUnreachable):
            post(f"https://hooks.example:{heard.port}/")  # not signed by anyone known
    assert len(heard.requests) == 1


def test_redirects_are_not_followed(heard):
    heard.status, heard.headers = 302, {"location": heard.url}
    assert post(heard.url).status == 302
    assert len(heard.requests) == 1


def test_responses_are_limited_in_size(heard):
    heard.body = b"x" * 100
    assert post(heard.url, max_bytes=100).body == heard.body
    assert post(heard.url).body == b""
    with pytest.raises(HostUnreachable, match="larger"):
        post(heard.url, max_bytes=99)


def test_responses_are_limited_in_time(heard):
    heard.pause_s = 1.0
    with pytest.raises(HostUnreachable, match="no answer"):
        post(heard.url, timeout_s=0.1)


def test_a_closed_port_is_unanswered(heard):
    heard.close()
    with pytest.raises(HostUnreachable, match="ConnectError"):
        post(heard.url)
    heard.server.server_close()


def test_no_proxy_is_used(monkeypatch, heard):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    assert post(heard.url).status == 200
