"""Conditional and Range requests."""

from __future__ import annotations

import pytest
from fastapi import FastAPI, Request, Response
from fastapi.testclient import TestClient

from app.middleware.request_context import HeadAsGet
from app.responses import problems
from app.responses.ranges import file_response
from clipsynth.budgets import Budget

DATA = b"0123456789"


@pytest.fixture(scope="module")
def client():
    app = FastAPI()
    problems.install(app)
    budget = Budget(None, "test", ValueError, per_process=100, per_key=100, uncounted=100)

    @app.get("/file")
    def file(request: Request) -> Response:
        return file_response(
            request, DATA, media_type="audio/wav", disposition="inline", account=(budget, "anonymous")
        )

    app.add_middleware(HeadAsGet)
    return TestClient(app)


def test_without_a_range_the_whole_file_is_sent(client):
    response = client.get("/file")
    assert (response.status_code, response.content, response.headers["content-type"]) == (
        200,
        DATA,
        "audio/wav",
    )
    assert response.headers["accept-ranges"] == "bytes"


@pytest.mark.parametrize(
    ("asked", "part", "content_range"),
    [
        ("bytes=0-3", b"0123", "bytes 0-3/10"),
        ("bytes=4-", b"456789", "bytes 4-9/10"),
        ("bytes=-2", b"89", "bytes 8-9/10"),
        ("bytes=-99", DATA, "bytes 0-9/10"),
        ("bytes=8-99", b"89", "bytes 8-9/10"),
    ],
)
def test_a_range_gets_a_part(client, asked, part, content_range):
    response = client.get("/file", headers={"range": asked})
    assert (response.status_code, response.content) == (206, part)
    assert response.headers["content-range"] == content_range
    head = client.head("/file", headers={"range": asked})
    assert (head.status_code, head.headers["content-length"], head.content) == (200, "10", b"")


@pytest.mark.parametrize("asked", ["bytes=-", "bytes=3-1", "bytes=0-1,4-5", "seconds=0-1", "nonsense"])
def test_an_unsupported_range_gets_the_whole_file(client, asked):
    assert client.get("/file", headers={"range": asked}).content == DATA


@pytest.mark.parametrize("asked", ["bytes=10-", "bytes=-0"])
def test_a_range_beyond_the_end_is_rejected(client, asked):
    response = client.get("/file", headers={"range": asked})
    assert (response.status_code, response.json()["code"]) == (416, "range_not_satisfiable")
    assert response.headers["content-range"] == "bytes */10"


def test_a_matching_etag_gets_304(client):
    etag = client.get("/file").headers["etag"]
    for tag in (etag, f'W/{etag}, "other"', "*"):
        response = client.get("/file", headers={"if-none-match": tag})
        assert (response.status_code, response.content) == (304, b"")
    assert client.get("/file", headers={"if-none-match": '"other"'}).status_code == 200


def test_if_range_with_another_etag_gets_the_whole_file(client):
    response = client.get("/file", headers={"range": "bytes=4-", "if-range": '"other"'})
    assert (response.status_code, response.content) == (200, DATA)
