"""JSON that costs much to parse or to refuse."""

from __future__ import annotations

import base64
import json

import pytest

from app.requests.body import MAX_ERRORS, MAX_NAMES, MAX_TEXT_BYTES
from tests.support.api_service import check_problem, image

NAMES = "{" + ",".join(f'"{n:x}":1' for n in range(MAX_NAMES + 1)) + "}"


def send(service, text, path="/v1/generations"):
    return service.client.post(path, content=text, headers={"content-type": "application/json"})


@pytest.mark.parametrize("path", ["/v1/generations", "/v1/estimate", "/v1/replay", "/v1/sound-generation"])
def test_json_without_images_has_a_small_limit(serve, path):
    service = serve()
    check_problem(send(service, '{"a":"' + "b" * MAX_TEXT_BYTES + '"}', path), 413, "payload_too_large")
    check_problem(send(service, " " * MAX_TEXT_BYTES + '{"image":""}', path), 413, "payload_too_large")
    nearly = send(service, '{"a":"' + "b" * (MAX_TEXT_BYTES - 100) + '"}', path)
    check_problem(nearly, 422, "invalid_request")


def test_text_beside_an_image_has_the_same_limit(serve):
    text = json.dumps({"image": "A" * 2000, "prompt": "a" * MAX_TEXT_BYTES})
    check_problem(send(serve(), text), 413, "payload_too_large")


def test_a_field_of_a_form_has_the_same_limit(serve):
    fields = {"prompt": (None, "a" * (MAX_TEXT_BYTES + 1))}
    refused = serve().client.post("/v1/generations", files=fields)
    check_problem(refused, 413, "payload_too_large")


def test_the_number_of_names_is_bounded(serve):
    service = serve()
    check_problem(send(service, NAMES), 400, "invalid_body")
    check_problem(send(service, f'{{"prompts":[{{"text":"a"}},{NAMES}]}}'), 400, "invalid_body")
    check_problem(send(service, '{"prompts":[' + "{}," * MAX_NAMES + "{}]}"), 400, "invalid_body")
    fields = {"prompt": (None, "a"), "metadata": (None, NAMES)}
    check_problem(service.client.post("/v1/generations", files=fields), 400, "invalid_body")


def test_few_errors_are_reported_and_shortly(serve):
    service = serve()
    refused = send(service, json.dumps({f"{n}" * 100: 1 for n in range(500)}))
    check_problem(refused, 422, "invalid_request")
    assert len(refused.json()["errors"]) == MAX_ERRORS
    assert len(refused.content) < 10_000
    for text in ('{"' + "a" * 200_000 + '":1}', '{"image":"part:' + "\\u0000" * 30_000 + '"}'):
        assert len(send(service, text).content) < 10_000


@pytest.mark.parametrize("escaped", [("/", "\\/"), ("+", "\\u002B"), ("", "")])
def test_an_image_in_json_may_be_escaped(serve, escaped):
    encoded = base64.b64encode(image("PNG", (400, 400))).decode()
    accepted = send(serve(), '{"image" : "' + encoded.replace(*escaped) + '", "prompt": null}')
    assert accepted.status_code == 202, accepted.text


def test_an_image_where_none_belongs_is_refused(serve):
    text = json.dumps({"prompt": "a", "metadata": {"image": "A" * 2000}})
    check_problem(send(serve(), text), 422, "invalid_request")
