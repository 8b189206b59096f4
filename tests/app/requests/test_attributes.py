"""Attributes from a body or from words of a prompt to the worker's rows, their recipe, and back."""

from __future__ import annotations

import base64
import io
import json

import numpy as np
import pytest
import soundfile

from clipsynth.schemas.generation import ReplayToken
from clipsynth.schemas.prompts import NAMES
from clipsynth.settings import Settings
from models.audio import attributes as measured
from tests.support.api_service import SHORT, check_problem, image, serving
from tests.support.tiny import RANGES


@pytest.fixture
def service(redis_url, tiny_pipeline, tmp_path):
    yield from serving(Settings(redis_url=redis_url, data_dir=tmp_path), tiny_pipeline)


def only(service, *names):
    """Have the served model take these attributes alone, as the API knows it."""
    service.state.announce(service.info.model_copy(update={"attributes": list(names)}))


def settled(response):
    assert response.status_code == 202, response.text
    asked = response.json()["input"]
    return asked["prompt"], asked["attributes"]


def dbfs(wav):
    return 20 * np.log10(np.sqrt(np.mean(soundfile.read(io.BytesIO(wav))[0] ** 2)))


def test_attribute_names_equal_those_of_the_networks():
    assert NAMES == measured.NAMES


def test_models_list_their_attributes(service):
    assert service.client.get("/v1/models").json()[0]["attributes"] == list(NAMES)


def test_attributes_change_the_sound_and_loudness_its_level(service):
    body = {"prompt": "a dog", "seed": 3, "output_formats": ["wav_float"], **SHORT}
    plain = service.wav(service.post(body))
    low, high = RANGES["loudness"]
    for quantile in (0.1, 0.5):
        loud = service.wav(service.post(body | {"attributes": {"loudness": quantile}}))
        assert dbfs(loud) == pytest.approx(low + quantile * (high - low), abs=0.1)
    assert plain == service.wav(service.post(body | {"attributes": {}}))
    pitched = service.wav(service.post(body | {"attributes": {"pitch": 0.9}}))
    assert plain != pitched
    assert abs(dbfs(plain) - dbfs(pitched)) < 20  # nobody asked for a level


def test_batched_jobs_keep_their_own_loudness(service):
    levels = (0.0, 0.4, None, 0.8)
    answers = [
        service.post(
            {"prompt": "a dog", "seed": 3, "output_formats": ["wav_float"], **SHORT}
            | ({} if level is None else {"attributes": {"loudness": level}})
        )
        for level in levels
    ]
    service.finish(answers[-1])
    wavs = [service.client.get(f"{answer.headers['location']}/audio/0").content for answer in answers]
    for level, wav in zip(levels, wavs, strict=True):
        if level is not None:
            assert dbfs(wav) == pytest.approx(-40 + 30 * level, abs=0.1)


def test_prompt_words_become_attributes_in_the_response(service):
    one = service.post({"prompt": "a loud, high-pitched dog barking", "seed": 3, **SHORT})
    assert settled(one) == ("a dog barking", {"loudness": 0.85, "pitch": 0.85})
    asked = {"prompt": "a dog barking", "attributes": {"pitch": 0.85, "loudness": 0.85}, "seed": 3, **SHORT}
    assert service.wav(one) == service.wav(service.post(asked))


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"prompt": "a loud dog", "attributes": {"loudness": 0.2}}, ("a dog", {"loudness": 0.2})),
        ({"prompt": "a loud dog", "attributes": {"pitch": 0}}, ("a dog", {"loudness": 0.85, "pitch": 0.0})),
        ({"prompt": "a loud dog", "attributes": {}}, ("a loud dog", {})),
        ({"prompt": "a loud dog", "attributes": {"pitch": None}}, ("a loud dog", {})),
        ({"prompt": "a dog", "negative_prompt": "a loud cat"}, ("a dog", {})),
        ({"prompts": [{"text": "a loud dog"}]}, (None, {})),
    ],
)
def test_explicit_attributes_win_over_prompt_words(service, body, expected):
    assert settled(service.post(body)) == expected


def test_prompt_words_need_a_model_with_the_attribute(service):
    only(service, "pitch")
    assert settled(service.post({"prompt": "a loud, deep dog"})) == ("a loud dog", {"pitch": 0.15})
    only(service)
    assert settled(service.post({"prompt": "a loud, deep dog"})) == ("a loud, deep dog", {})


def test_an_image_and_a_form_take_attributes_too(service):
    fields = {"attributes": json.dumps({"pitch": 0.8}), "seed": "1", **{k: str(v) for k, v in SHORT.items()}}
    png = image("PNG")
    in_form = service.post(files={"image": ("x", png)}, data=fields)
    assert settled(in_form) == (None, {"pitch": 0.8})
    sent = service.wav(in_form)  # alone: in company the last bits differ
    encoded = base64.b64encode(png).decode()
    in_json = service.post({"image": encoded, "attributes": {"pitch": 0.8}, "seed": 1, **SHORT})
    assert service.wav(in_json) == sent


@pytest.mark.parametrize("path", ["/v1/generations", "/v1/estimate"])
@pytest.mark.parametrize("taken", [["loudness"], []])
def test_an_unavailable_attribute_is_rejected_before_queueing(service, taken, path):
    only(service, *taken)
    response = service.client.post(path, json={"prompt": "a", "attributes": {"pitch": 0.5}})
    check_problem(response, 422, "attribute_unavailable")
    assert response.json()["errors"][0]["pointer"] == "/attributes/pitch"
    assert service.queue.count == 0
    assert service.redis.exists("clipsynth:inflight", "clipsynth:holds") == 0


@pytest.mark.parametrize(
    ("attributes", "pointer"),
    [
        ({"pitch": 1.01}, "/attributes/pitch"),
        ({"pitch": -0.01}, "/attributes/pitch"),
        ({"pitch": "0.5"}, "/attributes/pitch"),
        ({"pitch": True}, "/attributes/pitch"),
        ({"warmth": 0.5}, "/attributes/warmth"),
        ([], "/attributes"),
        ("loud", "/attributes"),
    ],
)
def test_an_invalid_attribute_is_pointed_at(service, attributes, pointer):
    response = service.post({"prompt": "a", "attributes": attributes})
    check_problem(response, 422, "invalid_request")
    assert response.json()["errors"][0]["pointer"] == pointer


def test_a_worker_fails_a_job_its_bundle_cannot_run(service, tiny_pipeline):
    before = tiny_pipeline.manifest
    tiny_pipeline.manifest = type(before)(name="tiny", min_duration_s=0.5, max_duration_s=5.0)
    try:
        done = service.finish(service.post({"prompt": "a", "attributes": {"pitch": 0.5}, **SHORT}))
    finally:
        tiny_pipeline.manifest = before
    assert (done["status"], done["error"]["code"]) == ("failed", "invalid_request")


# ------------------------------------------------------------------------------------------------- recipes


def replayed(service, recipe):
    return service.client.post("/v1/replay", json={"recipe": recipe})


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": "a loud, high-pitched dog"},
        {"prompt": "a loud noise"},
        {"prompt": "a dog", "attributes": {"brightness": 0.1, "loudness": 0.4}},
        {"prompt": "a loud dog", "attributes": {}},
    ],
)
def test_a_replay_keeps_attributes_and_sound(service, body):
    done = service.finish(service.post({**body, **SHORT}))
    again = service.finish(replayed(service, done["outputs"][0]["recipe"]))
    assert again["input"]["attributes"] == done["input"]["attributes"]
    one, other = (service.client.get(made["outputs"][0]["url"]).content for made in (done, again))
    assert one == other


def test_empty_attributes_do_not_change_a_token_id(service):
    done = service.finish(service.post({"prompt": "a dog", **SHORT}))
    recipe = ReplayToken.read(done["outputs"][0]["recipe"])
    fields = {name: value for name, value in recipe.model_dump().items() if name != "attributes"}
    old = ReplayToken.read(base64.urlsafe_b64encode(json.dumps(fields).encode()).decode())
    assert old.id == recipe.id
    assert old.model_copy(update={"attributes": {"pitch": 0.5}}).id != recipe.id


def test_replaying_an_old_token_ignores_prompt_words(service):
    done = service.finish(service.post({"prompt": "a loud dog", "attributes": {}, **SHORT}))
    fields = ReplayToken.read(done["outputs"][0]["recipe"]).model_dump(exclude={"attributes"})
    old = base64.urlsafe_b64encode(json.dumps(fields).encode()).decode()
    assert settled(replayed(service, old)) == ("a loud dog", {})
