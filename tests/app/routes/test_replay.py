"""Recipes and the wait in the queue, over the service of test_generations."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from app.requests import images, submit
from clipsynth.schemas.generation import ReplayToken
from clipsynth.schemas.model_info import ModelCost, ModelInfo
from clipsynth.settings import Settings
from clipsynth.storage import Storage
from tests.support.api_service import SHORT, check_problem, image, serving


@pytest.fixture
def service(redis_url, tiny_pipeline, tmp_path):
    yield from serving(Settings(redis_url=redis_url, data_dir=tmp_path), tiny_pipeline)


def replay(service, recipe):
    return service.client.post("/v1/replay", json={"recipe": recipe})


def made(service, response, n=0):
    done = service.finish(response)
    return done["outputs"][n]["recipe"], service.client.get(done["outputs"][n]["url"]).content


def test_a_replay_is_byte_equal(service):
    request = {"prompt": "ein Glöckchen", "negative_prompt": "wind", "guidance_scale": 2.5, **SHORT}
    recipe, sound = made(service, service.post(request))
    again, same = made(service, replay(service, recipe))
    assert (again, same) == (recipe, sound)
    assert not set("+/=") & set(recipe)


def test_a_replay_in_another_precision_says_so(service):
    recipe, _ = made(service, service.post({"prompt": "a", **SHORT}))
    assert service.finish(replay(service, recipe))["warnings"] == []
    info = service.state.model(None).model_dump(exclude={"status", "last_seen_at"})
    service.state.announce(ModelInfo(**info | {"precision": "bfloat16"}))
    response = replay(service, recipe)
    [warning] = response.json()["warnings"]
    assert (warning["code"], warning["pointer"]) == ("different_precision", "/recipe")
    assert "float32" in warning["detail"]
    assert service.finish(response)["warnings"] == [warning]


@pytest.mark.parametrize("fields", [{"duration_s": 6.0}, {"loop": True, "duration_s": 0.5}], ids=str)
def test_a_long_sound_and_a_loop_are_replayed(service, fields):
    recipe, sound = made(service, service.post({"prompt": "a", **SHORT, **fields}))
    again, same = made(service, replay(service, recipe))
    assert (again, same) == (recipe, sound)
    plain, _ = made(service, service.post({"prompt": "a", **SHORT}))
    assert ReplayToken.read(plain).id != ReplayToken.read(recipe).id


def test_the_token_of_output_n_replays_only_that_output(service):
    recipe, _ = made(service, service.post({"prompt": "a", "seed": 5, "num_outputs": 3, **SHORT}), n=2)
    body = service.finish(replay(service, recipe))
    assert (body["input"]["num_outputs"], body["seed"]) == (1, 7)


def test_an_image_is_replayed_while_it_is_stored(service):
    recipe, sound = made(service, service.post(files={"image": ("x", image("JPEG"))}, data=SHORT))
    _, same = made(service, replay(service, recipe))
    assert same == sound
    shutil.rmtree(Path(service.storage._root))
    check_problem(replay(service, recipe), 410, "image_gone")


def test_a_token_without_sets_is_read(service):
    recipe, sound = made(service, service.post({"prompt": "a", **SHORT}))
    fields = {
        k: v for k, v in ReplayToken.read(recipe).model_dump().items() if k not in ("prompts", "composition")
    }
    old = base64.urlsafe_b64encode(json.dumps(fields).encode()).decode()
    assert made(service, replay(service, old)) == (recipe, sound)


def test_a_token_of_another_version_is_rejected(service):
    recipe, _ = made(service, service.post({"prompt": "a", **SHORT}))
    service.state.announce(service.info.model_copy(update={"version": "another"}))
    check_problem(replay(service, recipe), 409, "recipe_mismatch")


@pytest.mark.parametrize(
    ("changes", "status", "code"),
    [
        ({"image_key": "../../etc/passwd"}, 422, "invalid_request"),
        ({"num_inference_steps": 10_000}, 422, "invalid_request"),
        ({"duration_s": 99.0}, 422, "too_long"),
        ({"prompt": None}, 422, "invalid_request"),
        ({"v": 2}, 422, "invalid_request"),
        ({"model": "other"}, 422, "model_not_found"),
    ],
)
def test_a_changed_token_is_validated(service, changes, status, code):
    recipe, _ = made(service, service.post({"prompt": "a", **SHORT}))
    fields = ReplayToken.read(recipe).model_dump() | changes
    check_problem(
        replay(service, base64.urlsafe_b64encode(json.dumps(fields).encode()).decode()), status, code
    )


@pytest.mark.parametrize("token", ["", "abc", "%%", "e30", "ä"])
def test_an_invalid_token_is_rejected(service, token):
    check_problem(replay(service, token), 422, "invalid_request")


def test_a_queued_generation_has_position_and_eta(service):
    body = {"prompt": "a", "duration_s": 2.0, "num_inference_steps": 10}
    unmeasured = service.post(body)
    assert unmeasured.json()["eta_s"] is None
    assert service.client.get(unmeasured.headers["location"]).json()["eta_s"] is None
    service.client.delete(unmeasured.headers["location"])
    cost = ModelCost(audio_step_s=0.01, step_s=0.001, guided_share=0.5)
    service.state.announce(service.info.model_copy(update={"cost": cost}))
    first, second = (service.post(body) for _ in "12")
    assert [r.json()["queue_position"] for r in (first, second)] == [0, 1]
    for response, expected in ((first, 0.3), (second, 0.6)):
        assert service.client.get(response.headers["location"]).json()["eta_s"] == pytest.approx(expected)
    service.redis.sadd("rq:workers:clipsynth-tiny", "rq:worker:one", "rq:worker:two")  # as their births do
    assert service.client.get(second.headers["location"]).json()["eta_s"] == pytest.approx(0.45)
    done = service.finish(first)
    assert (done["queue_position"], done["eta_s"]) == (None, None)


def test_a_token_with_many_images_reads_none(service, monkeypatch):
    recipe, _ = made(service, service.post(files={"image": ("x", image("JPEG"))}, data=SHORT))
    fields = ReplayToken.read(recipe).model_dump()
    stored = {"image_key": fields["image_key"], "image_sha256": fields["image_sha256"], "weight": 1.0}
    read = []
    monkeypatch.setattr(Storage, "get", lambda _, key: read.append(key) or b"")
    for number in (5, 430):  # one more than a request may have, and as many as fit into a token
        changes = {"image_key": None, "image_sha256": None, "prompts": [{"text": None, **stored}] * number}
        token = base64.urlsafe_b64encode(json.dumps(fields | changes).encode()).decode()
        check_problem(replay(service, token), 422, "invalid_request")
    assert read == []


def test_a_refused_replay_reads_no_image(service, monkeypatch):
    recipe, _ = made(service, service.post(files={"image": ("x", image("JPEG"))}, data=SHORT))
    read = []
    monkeypatch.setattr(Storage, "get", lambda _, key: read.append(key) or b"")
    monkeypatch.setattr(submit, "reserve", lambda *_: 1 / 0)
    assert replay(service, recipe).status_code == 500
    assert read == []


def test_replays_with_images_share_their_slots(service, monkeypatch):
    recipe, _ = made(service, service.post(files={"image": ("x", image("JPEG"))}, data=SHORT))
    running, most, lock = [], [], threading.Lock()
    decode = images.normalise_image

    def counted(*args):
        with lock:
            running.append(1)
            most.append(len(running))
        try:
            return decode(*args)
        finally:
            running.pop()

    monkeypatch.setattr(images, "normalise_image", counted)
    with ThreadPoolExecutor(8) as pool:
        assert {r.status_code for r in pool.map(lambda _: replay(service, recipe), range(8))} == {202}
    assert max(most) <= images.MAX_DECODING


def test_a_token_names_only_images_of_requests(service):
    recipe, sound = made(service, service.post({"prompt": "a", **SHORT}))
    done = service.client.get("/v1/generations").json()["data"][0]
    changes = {
        "image_key": f"{done['id']}/0.wav",
        "image_sha256": hashlib.sha256(sound).hexdigest(),
        "prompt": None,
    }
    fields = ReplayToken.read(recipe).model_dump() | changes
    token = base64.urlsafe_b64encode(json.dumps(fields).encode()).decode()
    check_problem(replay(service, token), 422, "invalid_request")
