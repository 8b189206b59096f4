"""Weighted sets from a client's body to the worker's rows, their recipe, and back."""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path
from typing import get_args

import pytest

from clipsynth.schemas.generation import ReplayToken
from clipsynth.schemas.prompts import Composition
from clipsynth.settings import Settings
from models.conditioning.prompts import COMPOSITIONS
from tests.support.api_service import SHORT, check_problem, image, serving


@pytest.fixture
def service(redis_url, tiny_pipeline, tmp_path):
    yield from serving(Settings(redis_url=redis_url, data_dir=tmp_path), tiny_pipeline)


COMPOSITION = get_args(Composition)[0]  # of its Annotated
PNG = image("PNG")
DATA_URL = "data:image/png;base64," + base64.b64encode(PNG).decode()
PIANO, RAIN, SPEECH = {"text": "piano"}, {"text": "rain", "weight": 0.5}, {"text": "speech", "weight": -0.5}


def test_a_weighted_set_sounds_the_same_in_any_order(service):
    items = [PIANO, {"image": DATA_URL, "weight": 2}, RAIN, SPEECH]
    one, other = (
        service.wav(service.post({"prompts": order, "seed": 3, **SHORT})) for order in (items, items[::-1])
    )
    assert one == other
    without = service.wav(service.post({"prompts": items[:3], "seed": 3, **SHORT}))
    assert without != one


def test_the_response_echoes_the_set_and_its_weights(service):
    done = service.finish(service.post({"prompts": [SPEECH, PIANO], **SHORT}))
    assert [(p["text"], p["weight"]) for p in done["input"]["prompts"]] == [("speech", -0.5), ("piano", 1.0)]
    assert done["input"]["composition"] == "set"


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_compositions_differ_and_replay_byte_equal(service, guidance_scale):
    sounds = {}
    for composition in get_args(COMPOSITION):
        body = {
            "prompts": [PIANO, RAIN],
            "composition": composition,
            "guidance_scale": guidance_scale,
            "seed": 3,
        }
        done = service.finish(service.post({**SHORT, **body}))
        assert done["input"]["composition"] == composition
        sounds[composition] = service.client.get(done["outputs"][0]["url"]).content
        token = done["outputs"][0]["recipe"]
        assert ReplayToken.read(token).composition == composition
        assert service.wav(service.client.post("/v1/replay", json={"recipe": token})) == sounds[composition]
    assert len(set(sounds.values())) == 3


def test_a_prompt_and_an_image_are_composed_too(service):
    def sound(composition):
        fields = {"prompt": "rain", "composition": composition, "seed": "1", **SHORT}
        parts = [(name, (None, str(value))) for name, value in fields.items()]
        return service.wav(service.post(files=[*parts, ("image", ("x", PNG))]))

    assert len({sound(composition) for composition in get_args(COMPOSITION)}) == 3


def test_models_and_api_name_the_same_compositions():
    assert get_args(COMPOSITION) == COMPOSITIONS


def form(prompts, **files):
    parts = [(name, ("x", data)) for name, data in files.items()]
    return parts + [
        (n, (None, str(v))) for n, v in {"prompts": json.dumps(prompts), **SHORT, "seed": 1}.items()
    ]


def test_a_form_carries_several_images_by_name(service):
    red, blue = image("JPEG"), image("WEBP")
    prompts = [{"image": "part:blue", "weight": 0.5}, PIANO, {"image": "part:red"}]
    sent = service.wav(service.post(files=form(prompts, red=red, blue=blue)))
    prompts[0]["image"], prompts[2]["image"] = (base64.b64encode(data).decode() for data in (blue, red))
    assert service.wav(service.post({"prompts": prompts, "seed": 1, **SHORT})) == sent


def test_a_replayed_set_is_equal_to_the_byte(service):
    prompts = [SPEECH, {"image": "part:b"}, PIANO, {"image": "part:a", "weight": 2}]
    done = service.finish(service.post(files=form(prompts, a=image("PNG"), b=image("PNG"))))
    replay = service.client.post("/v1/replay", json={"recipe": done["outputs"][0]["recipe"]})
    assert service.wav(replay) == service.client.get(done["outputs"][0]["url"]).content
    shutil.rmtree(Path(service.storage._root))
    replay = service.client.post("/v1/replay", json={"recipe": done["outputs"][0]["recipe"]})
    check_problem(replay, 410, "image_gone")


def test_the_replay_token_of_a_set_ignores_order(service):
    bodies = [{"prompts": order, "seed": 1, **SHORT} for order in ([PIANO, RAIN], [RAIN, PIANO])]
    one, other = (service.finish(service.post(body))["outputs"][0]["recipe"] for body in bodies)
    assert one == other


BAD_PNG = base64.b64encode(PNG[:200]).decode()


@pytest.mark.parametrize(
    ("body", "status", "pointer"),
    [
        ({"prompts": []}, 422, "/prompts"),
        ({"prompts": [PIANO] * 9}, 422, "/prompts"),
        ({"prompts": [SPEECH]}, 422, "/prompts"),
        ({"prompts": [{"image": DATA_URL}] * 5}, 422, "/prompts"),
        ({"prompts": [PIANO, {}]}, 422, "/prompts/1"),
        ({"prompts": [PIANO, {"text": "a", "image": DATA_URL}]}, 422, "/prompts/1"),
        ({"prompts": [PIANO, {"text": " "}]}, 422, "/prompts/1/text"),
        ({"prompts": [PIANO, {"text": "a" * 1001}]}, 422, "/prompts/1/text"),
        ({"prompts": [PIANO, {"text": "a", "weight": 0}]}, 422, "/prompts/1/weight"),
        ({"prompts": [PIANO, {"text": "a", "weight": 10.5}]}, 422, "/prompts/1/weight"),
        ({"prompts": [PIANO, {"text": "a", "weight": "1"}]}, 422, "/prompts/1/weight"),
        ({"prompts": [PIANO, {"text": "a", "weight": True}]}, 422, "/prompts/1/weight"),
        ({"prompts": [PIANO, {"text": "a", "loudness": 1}]}, 422, "/prompts/1/loudness"),
        ({"prompts": [PIANO, SPEECH], "guidance_scale": 1}, 422, "/prompts/1/weight"),
        ({"prompts": [PIANO, {"image": "%%%"}]}, 422, "/prompts/1/image"),
        ({"prompts": [PIANO, {"image": "data:image/png,x"}]}, 422, "/prompts/1/image"),
        ({"prompts": [PIANO, {"image": "part:x"}]}, 422, "/prompts/1/image"),
        ({"prompts": [PIANO, {"image": BAD_PNG}]}, 422, "/prompts/1/image"),
        ({"prompts": [PIANO, {"image": "YWJj"}]}, 415, "/prompts/1/image"),
        ({"prompts": [PIANO, {"image_url": "https://example.org/a.png"}]}, 422, "/prompts/1/image_url"),
        ({"prompts": [PIANO], "composition": "sum"}, 422, "/composition"),
        ({"prompts": [PIANO], "prompt": "a"}, 422, ""),
        ({"image": DATA_URL, "image_url": "https://example.org/a.png"}, 422, ""),
        ({"prompt": "a", "metadata": {"": "a"}}, 422, "/metadata/"),
        ({"prompt": "a", "metadata": {"a": 1}}, 422, "/metadata/a"),
        ({"prompt": "a", "metadata": {"a/b~": 1}}, 422, "/metadata/a~1b~0"),
        ({"prompt": "a", "x/y": 1}, 422, "/x~1y"),
        ({"prompt": "a", "metadata": {"a": "b" * 501}}, 422, "/metadata/a"),
        ({"prompt": "a", "metadata": {str(n): "" for n in range(17)}}, 422, "/metadata"),
    ],
)
def test_an_invalid_field_is_pointed_at(service, body, status, pointer):
    response = service.post({**body, **SHORT})
    assert (response.status_code, response.json()["errors"][0]["pointer"]) == (status, pointer), response.text
    assert service.redis.exists("clipsynth:inflight", "clipsynth:holds") == 0  # no room is kept


@pytest.mark.parametrize(
    ("files", "status", "code"),
    [
        (form([PIANO], left=PNG), 422, "invalid_request"),
        (form([{"image": "part:other"}], one=PNG), 422, "invalid_request"),
        (form([{"image": "part:f0"}], **{f"f{n}": PNG for n in range(6)}), 400, "invalid_body"),
        (form([PIANO, {"image": "part:a"}], a=PNG) * 2, 400, "invalid_body"),
        ([("prompts", (None, "[")), ("a", ("x", PNG))], 400, "invalid_body"),
        ([("prompts", (None, "3"))], 422, "invalid_request"),
    ],
)
def test_a_bad_form_is_a_problem(service, files, status, code):
    check_problem(service.post(files=files), status, code)


def test_metadata_is_returned(service):
    metadata = {"project": "Glöckchen", "take": "3"}
    response = service.post({"prompt": "a", "metadata": metadata, **SHORT})
    assert service.finish(response)["metadata"] == metadata
    assert service.client.get("/v1/generations").json()["data"][0]["metadata"] == metadata
    in_form = [("prompt", (None, "a")), ("metadata", (None, json.dumps(metadata)))]
    assert service.post(files=in_form).json()["metadata"] == metadata
    assert service.post({"prompt": "a"}).json()["metadata"] == {}


def test_an_idempotency_key_covers_every_image(service):
    def post(second):
        return service.post(
            {"prompts": [{"image": DATA_URL}, {"image": base64.b64encode(second).decode()}], **SHORT},
            headers={"idempotency-key": "k"},
        )

    first = post(PNG)
    assert post(PNG).json()["id"] == first.json()["id"]
    check_problem(post(image("PNG")), 422, "idempotency_mismatch")
