"""Bodies that are no request, and bodies at the edge of one."""

from __future__ import annotations

import gzip
import io

import pytest
from PIL import Image

from clipsynth.schemas.request import GenerationRequest
from clipsynth.settings import Settings
from tests.support.api_service import SHORT, check_problem, image, serving


@pytest.fixture
def service(redis_url, tiny_pipeline, tmp_path):
    yield from serving(Settings(redis_url=redis_url, data_dir=tmp_path), tiny_pipeline)


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"prompt": ""}, 422, "invalid_request"),
        ({"prompt": "  "}, 422, "invalid_request"),
        ({}, 422, "invalid_request"),
        ({"prompt": "a", "num_inference_steps": 0}, 422, "invalid_request"),
        ({"prompt": "a", "num_inference_steps": 10_000}, 422, "invalid_request"),
        ({"prompt": "a", "duration_s": -1}, 422, "invalid_request"),
        ({"prompt": "a", "duration_s": 90}, 422, "too_long"),
        ({"prompt": "a", "seed": 2**32}, 422, "invalid_request"),
        ({"prompt": "a", "colour": "blue"}, 422, "invalid_request"),
        ({"prompt": "a", "negative_prompt": "b", "guidance_scale": 1}, 422, "invalid_request"),
        ({"prompt": "a", "model": "other"}, 422, "model_not_found"),
        ({"image": "%%%"}, 422, "invalid_request"),
        ({"prompt": 3}, 422, "invalid_request"),
        ({"prompt": "a", "num_inference_steps": "12"}, 422, "invalid_request"),
        ({"prompt": "a", "num_inference_steps": True}, 422, "invalid_request"),
        ({"prompt": "a", "num_inference_steps": 2.5}, 422, "invalid_request"),
        ({"prompt": None, "image": None}, 422, "invalid_request"),
        ({"prompt": "a", "output_formats": [None]}, 422, "invalid_request"),
        ({"prompt": "a", "guidance_scale": "4"}, 422, "invalid_request"),
        ({"prompt": "a", "duration_s": True}, 422, "invalid_request"),
        ({"prompt": "a", "deadline_s": 0}, 422, "invalid_request"),
        ({"prompt": "a", "output_formats": ["aiff"]}, 422, "invalid_request"),
        ({"prompt": "a", "output_formats": ["wav", "wav"]}, 422, "invalid_request"),
        ({"prompt": "a", "output_formats": ["wav", "flac", "ogg", "mp3", "wav_24"]}, 422, "invalid_request"),
        ({"prompt": "a", "output_formats": []}, 422, "invalid_request"),
        ({"prompt": "a", "output_format": "wav"}, 422, "invalid_request"),
        ([], 400, "invalid_body"),
    ],
)
def test_bad_json_is_a_problem(service, body, status, code):
    check_problem(service.post(body), status, code)


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        (b"this is text", 415, "unsupported_media"),
        (image("JPEG", (300, 300))[:2000], 422, "image_undecodable"),
        (image("PNG", (300, 300))[:2000], 422, "image_undecodable"),
        (b"", 415, "unsupported_media"),
        (b"\0" * 25_000_001, 413, "image_too_large"),
        (b"\0" * 101_000_000, 413, "image_too_large"),
    ],
)
def test_bad_image_is_a_problem(service, data, status, code):
    check_problem(service.post(files={"image": ("x.png", data)}), status, code)


def test_a_100_megapixel_image_is_rejected_before_decoding(service):
    file = io.BytesIO()
    Image.new("1", (10_000, 10_000)).save(file, "PNG")
    check_problem(service.post(files={"image": ("x.png", file.getvalue())}), 413, "image_too_large")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"prompt"',
        b"\xff",
        b'{"prompt": "a", "guidance_scale": NaN}',
        b'{"prompt": "a", "guidance_scale": Infinity}',
        b'{"prompt": "a", "prompt": "b"}',
        b'{"prompt": ' + b"[" * 100_000,
        b'{"prompt": "a", "seed": 1' + b"0" * 10_000 + b"}",
    ],
)
def test_a_body_that_is_no_json_is_a_problem(service, content):
    response = service.post(content=content, headers={"content-type": "application/json"})
    check_problem(response, 400, "invalid_body")


def test_half_a_surrogate_is_no_text(service):
    response = service.post(content=b'{"prompt": "\\ud800"}', headers={"content-type": "application/json"})
    check_problem(response, 422, "invalid_request")


def test_numbers_without_a_fraction_are_integers(service):
    content = b'{"prompt": "a", "seed": 7.0, "num_inference_steps": 2e0, "rank": -0.0, "duration_s": 1.0}'
    made = service.post(content=content, headers={"content-type": "application/json"}).json()
    assert (made["seed"], made["input"]["num_inference_steps"], made["input"]["duration_s"]) == (7, 2, 1)
    token = service.finish(service.post({"prompt": "a", **SHORT}))["outputs"][0]["recipe"]
    shim = {"text": "a", "duration_seconds": 90.0}
    for path, body in (("/v1/replay", {"recipe": token}), ("/v1/estimate", {"prompt": "a", "seed": 1.0})):
        assert service.client.post(path, json=body).status_code in (200, 202)
    check_problem(service.client.post("/v1/sound-generation", json=shim), 422, "too_long")


def test_null_means_absent(service):
    names = set(GenerationRequest.model_fields) - {"prompt"}
    made = service.post({"prompt": "a", **dict.fromkeys(names)})
    assert made.json()["input"] | {"seed": 0} == service.post({"prompt": "a"}).json()["input"] | {"seed": 0}
    item = {"text": "a", "image": None, "weight": None}
    assert service.post({"prompts": [item]}).json()["input"]["prompts"][0]["weight"] == 1
    fields = form(prompt="a", attributes="null", metadata="null")
    assert service.post(files=fields).json()["input"]["attributes"] == {}
    shim = {"text": "a", "loop": None, "duration_seconds": 90}
    check_problem(service.client.post("/v1/sound-generation", json=shim), 422, "too_long")


@pytest.mark.parametrize("name", ["", "promt"])
def test_an_unknown_name_is_refused_with_null_too(service, name):
    check_problem(service.post({"prompt": "a", name: None}), 422, "invalid_request")


@pytest.mark.parametrize("path", ["/v1/generations", "/v1/estimate"])
@pytest.mark.parametrize("url", ["false", "ftp://a.org/b.png", "javascript:1", "//a.org/b.png", "a.png"])
def test_an_address_of_an_image_is_one_of_the_web(service, path, url):
    response = service.client.post(path, json={"image_url": url})
    check_problem(response, 422, "invalid_request")
    assert response.json()["errors"][0]["pointer"] == "/image_url"


@pytest.mark.parametrize("path", ["/v1/generations", "/v1/estimate", "/v1/replay", "/v1/sound-generation"])
def test_a_compressed_body_is_refused_by_name(service, path):
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    body = gzip.compress(b'{"prompt": "a"}')
    response = service.client.post(path, content=body, headers=headers)
    check_problem(response, 415, "unsupported_media")
    assert response.headers["accept-encoding"] == "identity"
    plain = service.post(content=b'{"prompt": "a"}', headers=headers | {"content-encoding": "identity"})
    assert plain.status_code == 202


def test_unknown_media(service):
    response = service.post(content=b"hello", headers={"content-type": "text/plain"})
    check_problem(response, 415, "unsupported_media")


def form(**fields):
    """Fields of a multipart body without a file."""
    return [(name, (None, str(value))) for name, value in fields.items()]


def test_a_form_carries_text_and_numbers(service):
    assert service.wav(service.post(files=form(prompt="rain", output_formats="wav", **SHORT)))


@pytest.mark.parametrize(
    ("files", "status", "code"),
    [
        (form(prompt="a", num_inference_steps="many"), 422, "invalid_request"),
        (form(prompt="a", guidance_scale="nan"), 422, "invalid_request"),
        (form(prompt="a", colour="blue"), 422, "invalid_request"),
        (form(prompt="a") * 2, 400, "invalid_body"),
        ([("one", ("x", b"1")), ("two", ("x", b"2"))], 422, "invalid_request"),
        ([("one", ("x", b"1")), ("one", ("x", b"2"))], 400, "invalid_body"),
        ([("one", ("x", b"1")), *form(image="part:two")], 422, "invalid_request"),
    ],
)
def test_a_bad_form_is_a_problem(service, files, status, code):
    check_problem(service.post(files=files), status, code)


def test_the_only_file_is_the_image_whatever_its_name(service):
    named = [("photo", ("x", image("PNG"))), *form(image="part:photo", **SHORT)]
    assert service.wav(service.post(files=named))
