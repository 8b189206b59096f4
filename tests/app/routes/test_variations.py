"""Variations and continuations of an output."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from clipsynth.schemas.generation import MEDIA_TYPES, JobPayload, ReplayToken
from clipsynth.schemas.model_info import ModelCost
from clipsynth.security.api_keys import create_key
from clipsynth.services.janitor import sweep
from clipsynth.settings import Settings
from clipsynth.storage import audio_key
from models.audio.continuation import without_roughness
from models.audio.level import level
from tests.support.api_service import SHORT, check_problem, image, serving
from tests.support.constants import BATCHED_TOLERANCE
from worker.output_files import encode

RAIN = {"prompt": "rain", "seed": 3, "output_formats": ["wav_float"], **SHORT}
LOOP = {"timeline": [{"text": "rain", "start_s": 0, "end_s": 1}], "loop": True}


@pytest.fixture
def service(redis_url, tiny_pipeline, tmp_path):
    yield from serving(Settings(redis_url=redis_url, data_dir=tmp_path), tiny_pipeline)


def vary(service, parent, **body):
    return service.client.post(f"/v1/generations/{parent['id']}/variations", json=body)


def extend(service, parent, **body):
    return service.client.post(f"/v1/generations/{parent['id']}/continuations", json=body)


def wave(service, generation, n=0):
    assert generation["status"] == "succeeded", generation
    data = service.client.get(generation["outputs"][n]["url"]).content
    return soundfile.read(io.BytesIO(data), dtype="float32")[0]


def test_strength_zero_is_the_parent(service):
    parent = service.finish(service.post({**RAIN, "num_outputs": 2}))
    made = service.finish(vary(service, parent, output=1, strength=0, num_outputs=2))
    assert made["parent"] == {"id": parent["id"], "output": 1}
    for n in (0, 1):
        np.testing.assert_array_equal(wave(service, made, n), wave(service, parent, 1))


def test_distance_grows_with_strength(service):
    parent = service.finish(service.post({**RAIN, "duration_s": 1.0}))
    mels = [service.predictor.log_mel(wave(service, parent))]
    for strength in (0.1, 0.3, 0.6):
        made = service.finish(vary(service, parent, strength=strength, seed=9))
        assert made["input"]["parent"]["strength"] == strength
        mels.append(service.predictor.log_mel(wave(service, made)))
    distances = [float(np.abs(mel - mels[0]).mean()) for mel in mels[1:]]
    assert distances == sorted(distances)


def test_a_small_variation_is_as_loud_as_its_parent(service):
    parent = service.finish(service.post({**RAIN, "duration_s": 1.0, "attributes": {"loudness": 0.2}}))
    key = audio_key(service.state.get(parent["id"]).folder, 0, "wav_float")
    loud = 4 * wave(service, parent)
    service.storage.put(key, encode(loud, 16000, "wav_float", comment="x"))
    near, far = (
        np.sqrt(np.square(wave(service, service.finish(vary(service, parent, strength=s, seed=9)))).mean())
        for s in (0.05, 0.9)
    )
    ratio = np.sqrt(np.square(loud).mean()) / np.array([near, far])
    np.testing.assert_allclose(ratio, [4**0.05, 4**0.9], rtol=0.05)


def test_the_end_of_a_parent_has_its_level_in_the_whole(service):
    parent = np.random.default_rng(0).normal(size=48000).astype(np.float32) / 10
    parent[16000:] /= 10
    made = service.post({**RAIN, "duration_s": 4.0}).json()["input"]
    payload = JobPayload.model_validate(
        made | {"parent": {"id": "", "output": 0, "audio_key": "", "extend_s": 1}}
    )
    [row] = service.predictor.rows(payload, {}, parent)
    velocity, shares = row.held
    held = velocity + row.latents[:, : velocity.shape[1]]
    log_mel = without_roughness(service.predictor._mel(level(parent)[0]))
    whole = service.predictor._tokens(log_mel, service.predictor.num_tokens(3.0))
    end = whole[:, -service.predictor.num_tokens(2.0) :]
    assert float(held.mean()) == pytest.approx(float(end.mean()), abs=0.1)
    # The share of the known tokens falls over the last 0.25 s.
    assert (shares[:42] == 1).all()
    assert (shares[42:].diff(dim=0) < 0).all()
    assert len(shares) == 48


def test_a_continuation_begins_with_its_parent(service):
    parent = service.finish(service.post({**RAIN, "duration_s": 1.3}))
    made = service.finish(extend(service, parent, extend_s=1.1, seed=4))
    before, after = wave(service, parent), wave(service, made)
    assert (len(before), len(after)) == (20800, 38400)
    kept = len(before) - 8000
    np.testing.assert_array_equal(after[:kept], before[:kept])
    assert np.abs(after[len(before) :]).max() > 1e-3
    assert made["outputs"][0]["duration_s"] == pytest.approx(2.4)


def test_nothing_of_a_remake_is_not_a_number(service):
    parent = service.finish(service.post({**RAIN, "duration_s": 1.0}))
    for response in (vary(service, parent, strength=1), extend(service, parent, extend_s=4)):
        sound = wave(service, service.finish(response))
        assert np.isfinite(sound).all()
        assert 0 < np.abs(sound).max() <= 1


@pytest.mark.parametrize("name", MEDIA_TYPES)
def test_parents_of_every_format(service, name):
    parent = service.finish(service.post({**RAIN, "duration_s": 1.0, "output_formats": [name]}))
    same = service.finish(vary(service, parent, strength=0))
    url, own = (made["outputs"][0]["url"] for made in (parent, same))
    assert service.client.get(url).content == service.client.get(own).content
    varied = service.finish(vary(service, parent, strength=0.5))
    assert len(wave(service, varied)) == 16000
    longer = wave(service, service.finish(extend(service, parent, extend_s=0.5)))
    assert len(longer) == 24000
    # A lossy format is encoded again.
    if name not in ("ogg", "mp3"):
        np.testing.assert_array_equal(longer[:8000], wave(service, parent)[:8000])


def test_the_best_format_is_heard(service):
    formats = ["mp3", "wav", "flac"]
    parent = service.finish(service.post({**RAIN, "output_formats": formats}))
    made = service.finish(vary(service, parent))
    assert made["input"]["parent"]["audio_key"] == f"{made['id']}/in/parent.wav"
    assert [output["format"] for output in made["outputs"]] == formats


@pytest.mark.parametrize("fields", [{"strength": 0.5}, {"extend_s": 0.6}], ids=str)
def test_a_seed_is_a_sound_alone_and_batched(service, fields):
    parent = service.finish(service.post(RAIN))
    post = vary if "strength" in fields else extend
    alone, again = (wave(service, service.finish(post(service, parent, seed=5, **fields))) for _ in "12")
    np.testing.assert_array_equal(alone, again)
    others = [post(service, parent, seed=n, **fields) for n in (5, 6, 7)] + [service.post(RAIN)]
    service.worker.work(burst=True, logging_level="ERROR")
    batched = [service.client.get(response.headers["location"]).json() for response in others]
    np.testing.assert_allclose(wave(service, batched[0]), alone, atol=BATCHED_TOLERANCE, rtol=0)
    assert np.abs(wave(service, batched[1]) - alone).max() > 1e-2


def test_the_parent_may_be_removed_during_the_job(service):
    parent = service.finish(service.post(RAIN))
    queued = vary(service, parent, seed=5, strength=0.5)
    assert service.client.delete(f"/v1/generations/{parent['id']}").status_code == 204
    made = service.finish(queued)
    assert made["status"] == "succeeded"
    folder = Path(service.storage._root) / made["id"]
    assert (folder / "in" / "parent.wav_float").is_file()
    assert service.client.delete(f"/v1/generations/{made['id']}").status_code == 204
    assert not folder.exists()


def test_a_canceled_variation_keeps_no_files(service):
    parent = service.finish(service.post(RAIN))
    queued = vary(service, parent)
    canceled = service.client.post(f"{queued.headers['location']}/cancel").json()
    assert canceled["status"] == "canceled"
    assert service.client.delete(queued.headers["location"]).status_code == 204
    assert [path.name for path in Path(service.storage._root).iterdir()] == [parent["id"]]


def test_a_lost_copy_of_the_parent_is_a_typed_error(service):
    parent = service.finish(service.post(RAIN))
    queued = [vary(service, parent, strength=strength) for strength in (0, 0.5)]
    for response in queued:
        shutil.rmtree(Path(service.storage._root) / response.json()["id"])
    codes = [service.finish(response)["error"]["code"] for response in queued]
    assert codes == ["invalid_request"] * 2


def test_the_parent_of_another_key_is_not_found(service):
    parent = service.finish(service.post(RAIN))
    headers = {"authorization": f"Bearer {create_key(service.redis, 'a', ['generate', 'read'])[1]}"}
    for route, body in (("variations", {}), ("continuations", {"extend_s": 1})):
        url = f"/v1/generations/{parent['id']}/{route}"
        check_problem(service.client.post(url, json=body, headers=headers), 404, "not_found")


def test_an_expired_parent_is_gone(service):
    service.state.result_ttl_s = 0
    parent = service.finish(service.post(RAIN))
    assert sweep(service.state, service.storage) == 1
    check_problem(vary(service, parent), 410, "gone")
    check_problem(extend(service, parent, extend_s=1), 410, "gone")


def test_records_and_tokens_without_a_parent_are_unchanged(service):
    done = service.finish(service.post(RAIN))
    assert "parent" not in done
    assert "parent" not in done["input"]
    assert "parent" not in json.loads(ReplayToken.read(done["outputs"][0]["recipe"]).model_dump_json())


@pytest.mark.parametrize("fields", [{"strength": 0.5}, {"extend_s": 0.6}], ids=str)
@pytest.mark.parametrize(
    "body", [RAIN, RAIN | LOOP | {"prompt": None, "duration_s": None}], ids=["plain", "loop"]
)
def test_a_remake_is_replayed_without_its_parent(service, body, fields):
    parent = service.finish(service.post(body))
    post = vary if "strength" in fields else extend
    made = service.finish(post(service, parent, seed=5, **fields))
    assert service.client.delete(f"/v1/generations/{parent['id']}").status_code == 204
    recipe = made["outputs"][0]["recipe"]
    again = service.finish(service.client.post("/v1/replay", json={"recipe": recipe}))
    # A recipe has no formats: one file has 16 bits.
    np.testing.assert_allclose(wave(service, again), wave(service, made), atol=2**-15, rtol=0)
    assert again["parent"] == made["parent"]
    assert ReplayToken.read(again["outputs"][0]["recipe"]).id == ReplayToken.read(recipe).id
    check_problem(post(service, parent, **fields), 410, "gone")


def test_images_and_weights_hold_in_a_variation(service):
    files = {"beach": ("x", image("PNG"))}
    data = {"prompts": '[{"image": "part:beach", "weight": 2}, {"text": "rain"}]', **SHORT}
    parent = service.finish(service.post(data=data | {"composition": "mix"}, files=files))
    for made in (vary(service, parent), extend(service, parent, extend_s=0.5)):
        made = service.finish(made)
        assert made["status"] == "succeeded"
        assert (made["input"]["composition"], len(made["input"]["prompts"])) == ("mix", 2)


def test_a_mix_is_varied_from_parent_to_a_new_mix(service):
    mix = {"prompts": [{"text": "rain"}, {"text": "a dog"}], "composition": "mix", "duration_s": 1.0}
    mix = {**RAIN, **mix, "prompt": None}
    parent, new = (service.finish(service.post(mix | {"seed": seed})) for seed in (3, 9))
    same, near, far, other = (
        wave(service, service.finish(vary(service, parent, strength=strength, seed=9)))
        for strength in (0, 0.1, 0.6, 1)
    )
    np.testing.assert_array_equal(same, wave(service, parent))
    np.testing.assert_allclose(other, wave(service, new), atol=BATCHED_TOLERANCE)
    mels = [service.predictor.log_mel(sound) for sound in (same, near, far, other)]
    distances = [float(np.abs(mel - mels[0]).mean()) for mel in mels[1:]]
    assert distances == sorted(distances)


def test_a_timeline_continues_with_the_items_at_its_end(service):
    timeline = [
        {"text": "wind", "start_s": 0, "end_s": 0.5},
        {"text": "rain", "start_s": 0.2, "end_s": 1, "weight": 2, "attributes": {"pitch": 0.9}},
        {"text": "a dog", "start_s": 0.5, "end_s": 1, "attributes": {"pitch": 0.3}},
    ]
    parent = service.finish(service.post({"timeline": timeline, "num_inference_steps": 2}))
    made = service.finish(extend(service, parent, extend_s=0.5))
    assert made["status"] == "succeeded", made
    assert [(p["text"], p["weight"]) for p in made["input"]["prompts"]] == [("rain", 2), ("a dog", 1)]
    assert made["input"]["attributes"] == {"pitch": pytest.approx(0.7)}
    silent = service.finish(
        service.post({"timeline": timeline[:1], "duration_s": 1, "num_inference_steps": 2})
    )
    check_problem(extend(service, silent, extend_s=1), 422, "invalid_request")


def test_a_variation_is_idempotent(service):
    parent = service.finish(service.post(RAIN))
    url, headers = f"/v1/generations/{parent['id']}/variations", {"Idempotency-Key": "k"}
    first, second = (service.client.post(url, json={"strength": 0.3}, headers=headers) for _ in "12")
    assert (first.json()["id"], second.headers["Idempotent-Replayed"]) == (second.json()["id"], "true")
    other = service.client.post(url, json={"strength": 0.4}, headers=headers)
    check_problem(other, 422, "idempotency_mismatch")
    service.client.delete(f"/v1/generations/{parent['id']}")
    third = service.client.post(url, json={"strength": 0.3}, headers=headers)
    assert (third.status_code, third.json()["id"]) == (202, first.json()["id"])


def test_the_cost_of_a_remake_is_that_of_its_windows(service):
    parent = service.finish(service.post({**RAIN, "duration_s": 4.0, "guidance_scale": 1}))
    cost = ModelCost(audio_step_s=0.01, step_s=0.001, guided_share=0.5)
    service.state.announce(service.info.model_copy(update={"cost": cost}))
    work = []
    for response in (
        vary(service, parent, strength=0),
        vary(service, parent, num_outputs=2),
        extend(service, parent, extend_s=2),
    ):
        work.append(float(service.redis.hget(f"clipsynth:gen:{response.json()['id']}", "work")))
    assert work == pytest.approx([0, 2 * 2 * 4, 2 * (2 + 2)])


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"strength": 1.1}, 422, "invalid_request"),
        ({"strength": -0.1}, 422, "invalid_request"),
        ({"output": 8}, 422, "invalid_request"),
        ({"output": 1}, 404, "not_found"),
        ({"extend_s": 1}, 422, "invalid_request"),
        ({"num_outputs": 9}, 422, "invalid_request"),
    ],
)
def test_a_bad_variation_is_refused(service, body, status, code):
    parent = service.finish(service.post(RAIN))
    check_problem(vary(service, parent, **body), status, code)


def test_a_bad_continuation_is_refused(service):
    queued = service.post(RAIN)
    check_problem(extend(service, queued.json(), extend_s=1), 409, "not_ready")
    parent = service.finish(queued)
    check_problem(extend(service, parent), 422, "invalid_request")
    check_problem(extend(service, parent, extend_s=0.1), 422, "invalid_request")
    check_problem(extend(service, parent, extend_s=60), 422, "too_long")
    check_problem(extend(service, {"id": "gen_0"}, extend_s=1), 404, "not_found")
    shutil.rmtree(Path(service.storage._root))
    check_problem(extend(service, parent, extend_s=1), 410, "gone")
    assert service.client.post("/v1/generations", json=RAIN).status_code == 202


def test_a_changed_parent_in_a_recipe_is_refused(service):
    parent = service.finish(service.post(RAIN))
    made = service.finish(vary(service, parent))
    token = ReplayToken.read(made["outputs"][0]["recipe"])
    for own, status, code in (
        ({"audio_key": "../../etc/passwd"}, 422, "invalid_request"),
        ({"audio_key": f"{parent['id']}/in/0.png"}, 422, "invalid_request"),
        ({"audio_sha256": "0" * 64}, 410, "gone"),
        ({"audio_key": f"gen_{'0' * 26}/in/parent.wav"}, 410, "gone"),
        ({"strength": None, "extend_s": 1e6}, 422, "invalid_request"),
        ({"strength": None, "extend_s": 0.5}, 422, "invalid_request"),
        ({"strength": -1}, 422, "invalid_request"),
        ({"strength": float("nan")}, 422, "invalid_request"),
        ({"id": "x" * 1000}, 422, "invalid_request"),
    ):
        changed = token.model_copy(update={"parent": token.parent.model_copy(update=own)})
        check_problem(service.client.post("/v1/replay", json={"recipe": changed.token()}), status, code)
