"""HEAD on every GET route."""

from __future__ import annotations

import pytest

from clipsynth.settings import Settings
from tests.support.api_client import Service


@pytest.fixture
def service(redis_url, tmp_path):
    service = Service(Settings(redis_url=redis_url, data_dir=tmp_path))
    with service.client:
        yield service


def paths(app, generation_id):
    described = [path for path, methods in app.openapi()["paths"].items() if "get" in methods]
    pages = ["/", "/docs", "/docs/start.js", "/openapi.json", "/static/index.html"]
    return [path.format(generation_id=generation_id, n=0) for path in described] + pages


def test_head_is_get_without_the_body(service):
    created = service.post().json()
    service.work()
    found = paths(service.client.app, created["id"])
    assert len(found) > 15
    for path in found:
        head, got = service.client.head(path), service.client.get(path)
        assert (path, head.status_code, head.content) == (path, got.status_code, b"")
        names = {"content-type", "etag"} | (
            set() if path == "/metrics" or path.endswith("/events") else {"content-length"}
        )
        assert {n: head.headers.get(n) for n in names} == {n: got.headers.get(n) for n in names}, path


def test_head_of_unfinished_events_ends(service):
    response = service.client.head(service.post().headers["location"] + "/events")
    assert (response.status_code, response.content) == (200, b"")
    assert response.headers["content-type"].startswith("text/event-stream")


def test_head_of_another_method_is_refused(service):
    response = service.client.head("/v1/estimate")
    assert (response.status_code, response.headers["allow"]) == (405, "POST")
    assert service.client.put("/healthz").headers["allow"] == "GET, HEAD"


def test_the_description_names_no_head(service):
    assert not [item for item in service.client.app.openapi()["paths"].values() if "head" in item]
