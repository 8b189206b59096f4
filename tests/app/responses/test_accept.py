"""Content negotiation by Accept."""

from __future__ import annotations

import pytest

from app.responses.accept import best_media_type
from clipsynth.errors import NotAcceptable
from clipsynth.settings import Settings
from tests.support.api_service import SHORT, check_problem, serving

JSON = "application/json"
OFFERED = [JSON, "audio/wav", "audio/flac", "audio/mpeg"]


@pytest.fixture
def service(redis_url, tiny_pipeline, tmp_path):
    yield from serving(Settings(redis_url=redis_url, data_dir=tmp_path), tiny_pipeline)


@pytest.mark.parametrize(
    ("header", "best"),
    [
        ("", JSON),
        ("*/*", JSON),
        ("audio/*", "audio/wav"),
        ("AUDIO/FLAC", "audio/flac"),
        ("audio/flac;q=0.5, audio/mpeg", "audio/mpeg"),
        ("audio/*;q=0.5, audio/wav;q=0.1", "audio/flac"),
        ("audio/*, audio/wav;q=0", "audio/flac"),
        ("*/*;q=0.1, audio/*;q=0.2", "audio/wav"),
        ("application/json, audio/*;q=0.9", JSON),
        ("text/html, */*;q=0.8", JSON),
        ("application/json;q=0, */*", "audio/wav"),
        ("audio/x-wav", "audio/wav"),
        ("audio/mp3, audio/webm", "audio/mpeg"),
        ('audio/wav; codecs="1"; q=0.9', "audio/wav"),
        # A browser's audio element.
        ("audio/webm,audio/ogg,audio/wav,audio/*;q=0.9,video/*;q=0.6,*/*;q=0.5", "audio/wav"),
    ],
)
def test_the_best_media_type_wins(header, best):
    assert best_media_type(OFFERED, header) == best


@pytest.mark.parametrize("header", [",", ";", "audio/wav;q=x", "audio/wav;q=", "a;q=1;q=2,", "audio/wav;q=2"])
def test_a_header_without_a_valid_member_accepts_all(header):
    assert best_media_type(OFFERED, header) == JSON


@pytest.mark.parametrize("header", ["image/png", "audio/*;q=0, application/*;q=0", "*/*;q=0", "text/*"])
def test_a_header_that_accepts_none_is_an_error(header):
    with pytest.raises(NotAcceptable, match="audio/flac"):
        best_media_type(OFFERED, header)


def ask(service, accept, **body):
    headers = {"accept": accept, "prefer": "wait=1"}
    return service.post({"prompt": "rain", **SHORT, **body}, headers=headers)


@pytest.mark.parametrize(
    ("accept", "formats"),
    [("audio/*", ["wav"]), ("audio/flac", ["flac"]), ("*/*", ["wav"]), ("audio/ogg, */*;q=0.1", ["ogg"])],
)
def test_a_format_that_can_be_made_is_made(service, accept, formats):
    response = ask(service, accept)
    assert response.json()["input"]["output_formats"] == formats
    assert service.finish(response)["status"] == "succeeded"
    sound = service.client.get(response.headers["location"] + "/audio/0", headers={"accept": accept})
    assert sound.headers["content-type"] == {"flac": "audio/flac", "ogg": "audio/ogg"}.get(
        formats[0], "audio/wav"
    )


def test_a_request_that_no_answer_suits_makes_nothing(service):
    for accept, body in (("image/png", {}), ("audio/flac", {"output_formats": ["wav"]})):
        check_problem(ask(service, accept, **body), 406, "not_acceptable")
    assert service.client.get("/v1/generations").json()["data"] == []
