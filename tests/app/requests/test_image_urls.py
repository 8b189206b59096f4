"""Images of other hosts: off by default; if on, public hosts only, at the checked address."""

from __future__ import annotations

import http.server
import socket
import threading

import numpy as np
import pytest

from app.requests import images as images
from clipsynth.settings import Settings
from tests.support.api_service import SHORT, check_problem, image, samples, serving


class Gallery:
    """A server on loopback that serves one image, or the response that the test sets."""

    def __init__(self):
        self.asked, self.status, self.headers, self.body = [], 200, {}, image("PNG")
        gallery = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                gallery.asked.append((self.path, dict(self.headers)))
                self.send_response(gallery.status)
                for name, value in gallery.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                gallery.before_body()
                self.wfile.write(gallery.body)

            def log_message(self, *_):
                pass

        class Server(http.server.ThreadingHTTPServer):
            def handle_error(self, *_):  # clients that hang up
                pass

        self.before_body = lambda: None
        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/a.png"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}).start()


@pytest.fixture
def gallery():
    gallery = Gallery()
    yield gallery
    gallery.server.shutdown()
    gallery.server.server_close()


@pytest.fixture
def service(request, redis_url, tiny_pipeline, tmp_path):
    image_urls = getattr(request, "param", "loopback")
    settings = Settings(
        redis_url=redis_url, data_dir=tmp_path, image_urls=image_urls, max_image_bytes=100_000
    )
    yield from serving(settings, tiny_pipeline)


def refused(service, response, status, code, field="/image_url"):
    check_problem(response, status, code)
    assert response.json()["errors"][0]["pointer"] == field
    assert service.redis.exists("clipsynth:inflight", "clipsynth:holds") == 0  # no room is kept
    assert service.queue.count == 0


def test_a_fetched_image_is_kept_as_an_upload_is(service, gallery):
    sent = {"seed": "1", **SHORT}
    upload = service.wav(service.post(files={"image": ("x", gallery.body)}, data=sent))
    assert service.wav(service.post({"image_url": gallery.url, "seed": 1, **SHORT})) == upload
    prompts = [{"image_url": gallery.url}]
    done = service.finish(service.post({"prompts": prompts, "seed": 1, **SHORT}))
    in_set = service.client.get(done["outputs"][0]["url"]).content
    np.testing.assert_array_equal(samples(in_set), samples(upload))
    in_form = [(n, (None, str(v))) for n, v in {"image_url": gallery.url, "seed": 1, **SHORT}.items()]
    assert service.wav(service.post(files=in_form)) == upload
    headers = gallery.asked[0][1]
    assert not {"Authorization", "Cookie", "Referer"} & set(headers)


def test_an_idempotency_key_fetches_the_image_once(service, gallery):
    body, key = {"image_url": gallery.url, **SHORT}, {"idempotency-key": "k"}
    first = service.post(body, headers=key)
    gallery.status = 500
    assert service.post(body, headers=key).json()["id"] == first.json()["id"]
    assert len(gallery.asked) == 1


@pytest.mark.parametrize("service", ["off"], indirect=True)
def test_image_urls_are_off_by_default(service, gallery):
    assert Settings().image_urls == "off"
    refused(service, service.post({"image_url": gallery.url}), 422, "invalid_request")
    assert gallery.asked == []


@pytest.mark.parametrize("service", ["public"], indirect=True)
@pytest.mark.parametrize(
    "url",
    [
        "http://93.184.215.14/a.png",
        "https://127.0.0.1/",
        "https://0.0.0.0/",
        "https://10.0.0.1/",
        "https://169.254.169.254/latest/meta-data",
        "https://100.64.0.1/",
        "https://[::1]/",
        "https://[::ffff:127.0.0.1]/",
        "https://[::ffff:a9fe:a9fe]/",
        "https://[fe80::1]/",
        "https://[fd00::1]/",
        "https://[64:ff9b::7f00:1]/",
        "https://user@93.184.215.14/",
        "ftp://93.184.215.14/",
        "file:///etc/passwd",
        "data:image/png;base64,AAAA",
    ],
)
def test_private_addresses_are_rejected(service, url):
    refused(service, service.post({"image_url": url}), 422, "invalid_request")
    prompts = [{"text": "a"}, {"image_url": url}]
    response = service.post({"prompts": prompts})
    refused(service, response, 422, "invalid_request", "/prompts/1/image_url")


@pytest.mark.parametrize("service", ["public"], indirect=True)
@pytest.mark.parametrize(
    "addresses",
    [["127.0.0.1"], ["169.254.169.254"], ["::1"], ["::ffff:10.0.0.1"], ["93.184.215.14", "10.0.0.1"]],
)
def test_names_of_private_addresses_are_rejected(service, monkeypatch, addresses):
    real = socket.getaddrinfo

    def getaddrinfo(host, port, *rest, **named):
        if host != "images.example":
            return real(host, port, *rest, **named)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (a, port)) for a in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    response = service.post({"image_url": "https://images.example/a.png"})
    refused(service, response, 422, "invalid_request")


def test_the_checked_address_is_the_one_connected_to(service, gallery, monkeypatch):
    asked, real = [], socket.getaddrinfo

    def getaddrinfo(host, port, *rest, **named):
        if host != "localhost":
            return real(host, port, *rest, **named)
        asked.append(host)
        address = "127.0.0.1" if len(asked) == 1 else "10.0.0.1"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    url = gallery.url.replace("127.0.0.1", "localhost")
    assert service.post({"image_url": url}).status_code == 202
    assert (len(asked), len(gallery.asked)) == (1, 1)


@pytest.mark.parametrize("location", ["/b.png", "https://10.0.0.1/", "file:///etc/passwd"])
def test_redirects_are_not_followed(service, gallery, location):
    gallery.status, gallery.headers = 302, {"location": location}
    refused(service, service.post({"image_url": gallery.url}), 422, "image_not_fetched")
    assert len(gallery.asked) == 1


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (404, image("PNG"), (422, "image_not_fetched")),
        (200, b"", (415, "unsupported_media")),
        (200, b"<html>", (415, "unsupported_media")),
        (200, image("PNG", (300, 300))[:2000], (422, "image_undecodable")),
        (200, b"\0" * 100_001, (422, "image_not_fetched")),
    ],
)
def test_what_is_no_image_is_refused(service, gallery, status, body, expected):
    gallery.status, gallery.body = status, body
    refused(service, service.post({"image_url": gallery.url}), *expected)


def test_a_slow_host_times_out(service, gallery, monkeypatch):
    over = threading.Event()
    gallery.before_body = over.wait
    monkeypatch.setattr(images, "FETCH_S", 0.1)
    response = service.post({"image_url": gallery.url})
    over.set()
    refused(service, response, 422, "image_not_fetched")


def test_concurrent_fetches_are_limited(service, gallery):
    fetches = service.client.app.state.services.budgets.fetches
    fetches.free = 0
    response = service.post({"image_url": gallery.url})
    check_problem(response, 429, "rate_limited")
    assert int(response.headers["retry-after"]) > 0
    assert service.post({"prompt": "a"}).status_code == 202  # which needs no place
