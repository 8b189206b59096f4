"""What the fuzzers found, and tricks with paths and names."""

from __future__ import annotations

import json
import platform
import random
from pathlib import Path

import fastapi_swagger
import pytest

from app.memory import bound_arenas
from app.routes import pages
from benchmarks.fuzz.mutations import case
from benchmarks.fuzz.videos import draw_video
from clipsynth.errors import VideoUndecodable
from clipsynth.settings import Settings
from clipsynth.video_file import copy_video
from tests.support.api_client import Service


@pytest.fixture
def client(redis_url, tmp_path):
    service = Service(Settings(redis_url=redis_url, data_dir=tmp_path))
    with service.client:
        yield service.client


@pytest.mark.parametrize(
    "body", [b'{"\\ud800": 1}', b'{"prompt": "\\ud800"}', b'{"model": "\\udfff", "prompt": "a"}']
)
@pytest.mark.parametrize("path", ["/v1/generations", "/v1/replay"])
def test_half_a_surrogate_pair_is_a_problem(client, path, body):
    answer = client.post(path, content=body, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")


@pytest.mark.parametrize("host", ["[", "[::1", "local host", "localhost:abc", "@", ""])
def test_an_invalid_host_header_is_no_server_error(client, host):
    assert client.get("/v1/models", headers={"host": host}).status_code in (200, 401)


@pytest.mark.parametrize(
    "place",
    [
        "..%2f..%2fetc%2fpasswd",
        "%2e%2e/%2e%2e/keys",
        "gen_%00",
        "%ff",
        "*",
        "gen_" + "0" * 26,
        "gen_" + "A" * 26,
        "a" * 5000,
        "gen_x%0d%0aX: y",
    ],
)
def test_an_unknown_id_is_not_found(client, place):
    for path in (
        f"/v1/generations/{place}",
        f"/v1/generations/{place}/audio/0",
        f"/v1/generations/{place}/events",
    ):
        assert client.get(path).status_code == 404
    assert client.delete(f"/v1/generations/{place}").status_code == 404


@pytest.mark.parametrize(
    "path",
    [
        "/docs/static/..%2fmain.py",
        "/docs/static/%2e%2e/main.py",
        "/docs/static//etc/passwd",
        "/static/..%2froutes/pages.py",
        "/static/%2e%2e/routes/pages.py",
        "/static//etc/passwd",
    ],
)
def test_no_file_beside_the_pages_is_served(client, path):
    assert (Path(fastapi_swagger.__file__).parent / "main.py").is_file()
    assert Path(pages.__file__).name == "pages.py"  # what the paths point at is there
    assert client.get(path).status_code == 404


@pytest.mark.parametrize(
    "wanted", ['"', "bytes=", "bytes=9-1", "bytes=999999999-", "bytes=0-1,5-6", "bytes=0-1"]
)
@pytest.mark.parametrize("path", ["/", "/static/api.js", "/docs/static/swagger-ui.css"])
def test_pages_are_sent_whole(client, path, wanted):
    whole = client.get(path)
    answer = client.get(path, headers={"range": wanted})
    assert (answer.status_code, answer.content) == (200, whole.content)
    assert client.get(path, headers={"if-none-match": whole.headers["etag"]}).status_code == 304


def test_what_may_be_done_with_a_path_is_told(client):
    answers = {path: client.put(path) for path in ("/v1/generations", "/v1/generations/x", "/healthz")}
    assert {a.status_code for a in answers.values()} == {405}
    assert [a.headers["allow"] for a in answers.values()] == [
        "DELETE, GET, HEAD, POST",
        "DELETE, GET, HEAD",
        "GET, HEAD",
    ]


def test_event_streams_have_the_documented_format(client):
    made = client.post("/v1/generations", json={"prompt": "a"}).json()
    client.post(made["links"]["cancel"])
    fields = dict(
        line.split(": ", 1) for line in client.get(made["links"]["events"]).text.splitlines() if line
    )
    assert fields["event"] == "completed"
    # Some generated clients read it as text, others each event as an object.
    described = client.app.openapi()["paths"]["/v1/generations/{generation_id}/events"]["get"]["responses"]
    assert described["200"]["content"]["text/event-stream"]["schema"].keys() == {"description", "examples"}
    assert json.loads(fields["data"])["status"] == "canceled"


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="an option of glibc")
def test_malloc_takes_the_bound_of_arenas():
    assert bound_arenas()


def test_a_fuzzers_case_is_a_function_of_its_seed_and_number():
    assert case(1, 7) == case(1, 7) != case(2, 7)


def test_a_fuzzers_videos_are_partly_whole(tmp_path):
    """Broken and whole files reach the decoder, so that both answers occur."""
    found = set()
    for number in range(40):
        (source := tmp_path / "source").write_bytes(draw_video(random.Random(number)))
        try:
            found.add(copy_video(str(source), str(tmp_path / "copy"), 60.0)[0])
        except VideoUndecodable:
            found.add("broken")
    assert found == {"mp4", "webm", "broken"}
