"""What is around every answer: ids, headers, CORS, logs."""

from __future__ import annotations

import json
import logging

import pytest
from rq import Queue

from clipsynth.jobs.queue import get_queue
from clipsynth.log import JsonLines, about
from tests.support.api_service import check_problem


@pytest.fixture
def service(serve):
    return serve(cors_origins="https://a.example, https://b.example")


def test_a_request_has_an_id(service):
    assert (
        service.client.get("/healthz", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
    )
    made = {service.client.get("/healthz").headers["x-request-id"] for _ in range(3)}
    assert len(made) == 3


@pytest.mark.parametrize("sent", ["", "a b", "x" * 65, "a\u00e9", "<script>", '"', "a\tb"])
def test_an_unsafe_request_id_is_replaced(service, sent):
    headers = {"x-request-id": sent.encode()}
    assert service.client.get("/healthz", headers=headers).headers["x-request-id"].startswith("req_")


@pytest.mark.parametrize("path", ["/healthz", "/v1/nothing", "/v1/generations", "/docs", "/openapi.json"])
def test_every_response_has_security_headers(service, path):
    headers = service.client.get(path).headers
    assert headers["content-security-policy"].startswith("default-src 'self'")
    for directive in ("frame-ancestors 'none'", "base-uri 'none'", "form-action 'self'"):
        assert directive in headers["content-security-policy"]
    assert (headers["x-content-type-options"], headers["referrer-policy"]) == ("nosniff", "no-referrer")


def test_an_unexpected_error_names_the_request_id(service, monkeypatch, caplog):
    monkeypatch.setattr(Queue, "push_job_id", lambda *_, **__: 1 / 0)
    response = service.post(**{"x-request-id": "mine-1"})
    check_problem(response, 500, "internal_error")
    assert "mine-1" in response.json()["detail"]
    assert (response.headers["x-request-id"], response.headers["x-content-type-options"]) == (
        "mine-1",
        "nosniff",
    )
    assert "mine-1" in caplog.text


def test_cors_allows_the_configured_origins(service):
    for origin, allowed in (("https://b.example", True), ("https://evil.example", False)):
        headers = {"origin": origin, "access-control-request-method": "POST"}
        asked = service.client.options("/v1/generations", headers=headers)
        assert ("access-control-allow-origin" in asked.headers) is allowed
        answer = service.client.get("/v1/generations", headers={"origin": origin})
        assert ("access-control-allow-origin" in answer.headers) is allowed
    assert "access-control-allow-credentials" not in answer.headers


def test_cors_exposes_the_headers_of_answers(service):
    response = service.client.get("/v1/models", headers={"origin": "https://a.example"})
    exposed = set(response.headers["access-control-expose-headers"].split(", "))
    assert {"Content-Disposition", "Content-Range", "ETag", "Location", "Retry-After"} <= exposed


def test_a_cross_site_form_is_rejected_without_a_key(service):
    form = [("prompt", (None, "a"))]
    for origin, status in (("https://evil.example", 403), ("https://a.example", 202)):
        headers = {"origin": origin, "sec-fetch-site": "cross-site"}
        assert service.client.post("/v1/generations", files=form, headers=headers).status_code == status


def test_a_form_with_another_origin_is_rejected_without_a_key(service):
    form = [("prompt", (None, "a"))]
    for origin, status in (
        ("https://evil.example", 403),
        ("null", 403),
        ("https://a.example", 202),
        ("http://localhost", 202),
        # Another port of this machine.
        ("http://localhost:3000", 403),
        ("http://[::1", 403),
        ("", 403),
    ):
        for site in ({}, {"sec-fetch-site": "same-site"}, {"sec-fetch-site": "same-origin"}):
            headers = {"origin": origin, **site}
            answer = service.client.post("/v1/generations", files=form, headers=headers)
            assert answer.status_code == status, origin
    headers = {"origin": "https://sounds.example", "x-forwarded-host": "sounds.example"}
    assert service.client.post("/v1/generations", files=form, headers=headers).status_code == 202


@pytest.mark.parametrize("host", ['e"vil.com', "evil.com", "[::1", ""])
def test_an_invalid_host_header_is_not_loopback(service, host):
    check_problem(service.client.get("/v1/models", headers={"host": host}), 401, "unauthorized")


def test_dns_rebinding_needs_a_key(service):
    check_problem(service.client.get("http://evil.example/v1/models"), 401, "unauthorized")
    assert service.client.get("http://127.0.0.1:8000/v1/models").status_code == 200
    assert service.client.get("http://[::1]:8000/v1/models").status_code == 200


def test_the_job_record_holds_the_request_id(service):
    generation_id = service.post(**{"x-request-id": "mine-1"}).json()["id"]
    assert get_queue("tiny", service.redis).fetch_job(generation_id).meta == {"request_id": "mine-1"}


def logged(message, **extra):
    record = logging.getLogger("x").makeRecord("x", logging.INFO, "f", 1, message, (), None, extra=extra)
    return json.loads(JsonLines().format(record))


def test_log_lines_are_json_with_ids():
    with about("gen_1", {"request_id": "mine-1"}):
        line = logged("job succeeded\nok", seconds=1)
    assert line.pop("time").endswith("+00:00")
    assert line == {
        "level": "info",
        "logger": "x",
        "message": "job succeeded\nok",
        "request_id": "mine-1",
        "job_id": "gen_1",
        "seconds": 1,
    }
    with about("gen_1", ["not", "ours"]):
        assert "request_id" not in logged("m")
    assert "job_id" not in logged("m")


def test_access_logs_hold_no_prompt(service, caplog):
    caplog.set_level("INFO")
    service.post(**{"x-request-id": "mine-1"})
    service.client.post("/v1/generations", json={"prompt": "secret", "colour": "secret"})
    service.client.get("/healthz")
    told = [(r.route, r.status) for r in caplog.records if r.name == "clipsynth.access"]
    assert told == [("/v1/generations", 202), ("/v1/generations", 422)]
    assert "secret" not in caplog.text


PREFIXED = {"x-forwarded-prefix": "/apps/sounds/"}


def test_paths_have_the_prefix_that_a_proxy_strips(service):
    posted = service.post(**PREFIXED)
    resource = f"/v1/generations/{posted.json()['id']}"
    assert posted.headers["location"] == posted.json()["links"]["self"] == f"/apps/sounds{resource}"
    service.work()
    got = service.client.get(resource, headers=PREFIXED).json()
    events = service.client.get(f"{resource}/events", headers=PREFIXED).text
    listed = service.client.get("/v1/generations", headers=PREFIXED).json()["data"][0]
    assert got["outputs"][0]["url"] == listed["outputs"][0]["url"] == f"/apps/sounds{resource}/audio/0"
    assert f'"/apps/sounds{resource}/audio/0"' in events
    assert service.client.get("/openapi.json", headers=PREFIXED).json()["servers"] == [
        {"url": "/apps/sounds"}
    ]
    assert service.client.get("/static/style.css", headers=PREFIXED).status_code == 200
    # Nothing of it is stored.
    assert service.client.get(resource).json()["outputs"][0]["url"] == f"{resource}/audio/0"


@pytest.mark.parametrize(
    "prefix", ["//evil.example", "/a/../b", "evil", "/a b", "/" + "a" * 300, "/a\\b", "/."]
)
def test_an_odd_prefix_is_ignored(service, prefix):
    location = service.post(**{"x-forwarded-prefix": prefix}).headers["location"]
    assert location.startswith("/v1/generations/")


def test_a_prefix_may_equal_the_start_of_a_route(service):
    location = service.post(**{"x-forwarded-prefix": "/v1"}).headers["location"]
    assert location.startswith("/v1/v1/generations/")


def test_the_setting_names_the_prefix(serve):
    service = serve(root_path="/sounds")
    assert service.post().headers["location"].startswith("/sounds/v1/")
    assert service.post(**PREFIXED).headers["location"].startswith("/apps/sounds/v1/")
