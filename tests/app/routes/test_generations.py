"""HTTP to worker and back, over a real Redis."""

from __future__ import annotations

import base64
import gzip
import io
import itertools
import os
import re
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from fastapi.testclient import TestClient
from PIL import Image
from redis.exceptions import ConnectionError
from rq import Queue
from starlette.datastructures import Headers
from starlette.requests import Request

from app.main import create_app
from app.responses.ranges import file_response
from clipsynth.errors import StorageUnavailable
from clipsynth.jobs import store
from clipsynth.redis_keys import SEEN
from clipsynth.schemas.generation import Output
from clipsynth.schemas.request import GenerationRequest
from clipsynth.services.janitor import expire, sweep
from clipsynth.settings import Settings
from clipsynth.storage import audio_key
from tests.support.api_service import SHORT, check_problem, image, samples, serving
from tests.support.constants import BATCHED_TOLERANCE
from worker.predictor import Predictor


@pytest.fixture
def service(redis_url, tiny_pipeline, tmp_path):
    yield from serving(Settings(redis_url=redis_url, data_dir=tmp_path), tiny_pipeline)


@pytest.fixture
def open_clip_service(redis_url, open_clip_bundle, tmp_path):
    settings = Settings(redis_url=redis_url, data_dir=tmp_path, model=open_clip_bundle, device="cpu")
    yield from serving(settings, Predictor.setup(settings).pipeline)


def test_prompt_becomes_a_wav(service):
    audio = soundfile.SoundFile(
        io.BytesIO(service.wav(service.post({"prompt": "a dog barking", "duration_s": 1.2})))
    )
    assert (audio.samplerate, audio.channels, audio.subtype, audio.format) == (16000, 1, "PCM_16", "WAV")
    assert audio.frames == 19200


@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "WEBP"])
def test_uploaded_image_becomes_a_wav(service, fmt):
    response = service.post(files={"image": ("x", image(fmt))}, data={k: str(v) for k, v in SHORT.items()})
    assert len(samples(service.wav(response))) == 8000


def test_an_open_clip_bundle_is_served(open_clip_service):
    service = open_clip_service
    text = service.wav(service.post({"prompt": "a dog", "seed": 1, **SHORT}))
    seen = service.wav(service.post(files={"image": ("x", image("JPEG"))}, data={"seed": "1", **SHORT}))
    assert len(samples(text)) == len(samples(seen)) == 8000
    assert text != seen


def test_image_in_base64(service):
    assert service.wav(service.post({"image": base64.b64encode(image("PNG")).decode(), **SHORT}))


def test_same_seed_same_bytes(service):
    one, again, other = (service.wav(service.post({"prompt": "rain", "seed": s, **SHORT})) for s in (5, 5, 6))
    assert one == again
    assert one != other


def test_output_n_is_the_sound_of_seed_plus_n(service):
    request = {"prompt": "rain", **SHORT}
    done = service.finish(service.post({**request, "seed": 2**32 - 1, "num_outputs": 3}))
    assert [(o["index"], o["seed"]) for o in done["outputs"]] == [(0, 2**32 - 1), (1, 0), (2, 1)]
    for output in done["outputs"]:
        alone = service.wav(service.post({**request, "seed": output["seed"]}))
        np.testing.assert_allclose(
            samples(service.client.get(output["url"]).content), samples(alone), atol=BATCHED_TOLERANCE, rtol=0
        )


def test_an_output_says_what_it_is(service):
    done = service.finish(service.post({"prompt": "rain", "seed": 3, **SHORT}))
    assert done["outputs"][0].pop("recipe")
    assert done["outputs"] == [
        {
            "index": 0,
            "url": f"/v1/generations/{done['id']}/audio/0",
            "media_type": "audio/wav",
            "format": "wav",
            "filename": f"{done['id']}-0.wav",
            "duration_s": 0.5,
            "sample_rate": 16000,
            "seed": 3,
            "copy_distance": None,
            "is_copy": None,
            "nearest": [],
            "clip": None,
            "spectrogram_url": f"/v1/generations/{done['id']}/spectrogram/0",
            "peaks_url": f"/v1/generations/{done['id']}/peaks/0",
        }
    ]


def test_seed_is_drawn_and_returned(service):
    assert 0 <= service.post({"prompt": "rain", **SHORT}).json()["seed"] < 2**32


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"prompt": ""}, 422, "invalid_request"),
        ({"prompt": "  "}, 422, "invalid_request"),
        ({}, 422, "invalid_request"),
        ({"prompt": "a", "num_inference_steps": 0}, 422, "invalid_request"),
        ({"prompt": "a", "num_inference_steps": 10_000}, 422, "invalid_request"),
        ({"prompt": "a", "duration_s": -1}, 422, "invalid_request"),
        ({"prompt": "a", "duration_s": 9}, 422, "invalid_request"),
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
        (b"\0" * 10_000_001, 413, "image_too_large"),
        (b"\0" * 54_000_000, 413, "payload_too_large"),
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
    shim = {"text": "a", "duration_seconds": 9.0}
    for path, body in (("/v1/replay", {"recipe": token}), ("/v1/estimate", {"prompt": "a", "seed": 1.0})):
        assert service.client.post(path, json=body).status_code in (200, 202)
    check_problem(service.client.post("/v1/sound-generation", json=shim), 422, "invalid_request")


def test_null_means_absent(service):
    names = set(GenerationRequest.model_fields) - {"prompt"}
    made = service.post({"prompt": "a", **dict.fromkeys(names)})
    assert made.json()["input"] | {"seed": 0} == service.post({"prompt": "a"}).json()["input"] | {"seed": 0}
    item = {"text": "a", "image": None, "weight": None}
    assert service.post({"prompts": [item]}).json()["input"]["prompts"][0]["weight"] == 1
    fields = form(prompt="a", attributes="null", metadata="null")
    assert service.post(files=fields).json()["input"]["attributes"] == {}


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


def test_unknown_job_route_and_method(service):
    check_problem(service.client.get("/v1/generations/gen_nope"), 404, "not_found")
    check_problem(service.client.get("/v1/nothing"), 404, "not_found")
    check_problem(service.client.put("/v1/generations"), 405, "method_not_allowed")


def test_audio_before_it_is_ready(service):
    response = service.post({"prompt": "a", **SHORT})
    check_problem(service.client.get(response.headers["location"] + "/audio/0"), 409, "not_ready")
    service.finish(response)
    check_problem(service.client.get(response.headers["location"] + "/audio/1"), 404, "not_found")


def test_a_request_needs_a_worker_and_a_starting_one_counts(service):
    service.redis.delete("clipsynth:alive:tiny", SEEN)
    check_problem(service.post({"prompt": "a"}), 503, "no_worker")
    service.state.announce_starting(service.info)
    assert service.post({"prompt": "a"}).status_code == 202


def test_a_starting_worker_counts_for_its_own_model_alone(service):
    service.redis.delete("clipsynth:alive:tiny", SEEN)
    service.state.announce_starting(service.info.model_copy(update={"name": "other"}))
    check_problem(service.post({"prompt": "a", "model": "tiny"}), 503, "no_worker")
    assert service.post({"prompt": "a", "model": "other"}).status_code == 202
    served = {m["name"]: m["status"] for m in service.client.get("/v1/models").json()}
    assert served == {"other": "starting", "tiny": "absent"}


def test_a_request_without_a_model_goes_to_a_ready_worker(service):
    service.state.announce_starting(service.info.model_copy(update={"name": "a-new-one"}))
    assert service.post({"prompt": "a"}).json()["model"] == "tiny"


def test_rq_and_the_logs_do_not_show_the_prompt(service, caplog):
    caplog.set_level("DEBUG")
    response = service.post({"prompt": "a secret wish", **SHORT})
    assert "secret" not in service.queue.fetch_job(response.json()["id"]).description
    service.finish(response)
    assert "secret" not in caplog.text


@pytest.mark.parametrize("lost", ["push_job_id", "take_turn"])
def test_a_generation_and_its_job_are_created_together(service, monkeypatch, lost):
    def broken(*_, **__):
        raise ConnectionError("the wire was cut")

    monkeypatch.setattr(store if lost == "take_turn" else Queue, lost, broken)
    assert service.post({"prompt": "a"}).status_code == 503
    assert not service.redis.keys("clipsynth:gen:*")
    assert not service.redis.keys("rq:job:*")
    assert service.queue.count == 0


def test_redis_that_does_not_answer(tmp_path):
    client = TestClient(
        create_app(Settings(redis_url=f"unix://{tmp_path}/none.sock", data_dir=tmp_path)),
        base_url="http://localhost",
        raise_server_exceptions=False,
    )
    check_problem(client.post("/v1/generations", json={"prompt": "a"}), 503, "redis_unavailable")
    check_problem(client.get("/readyz"), 503, "redis_unavailable")
    assert client.get("/healthz").status_code == 200


def rewrite(job, func_name, args):
    """Change a queued job as someone with access to Redis could."""
    job.func_name, job.instance, job.args, job.kwargs = func_name, None, args, {}
    job.save()


def test_a_function_name_in_redis_is_never_run(service):
    response = service.post({"prompt": "a", **SHORT})
    job = service.queue.fetch_job(response.json()["id"])
    rewrite(job, "os.mkdir", job.args)
    assert service.finish(response)["status"] == "succeeded"
    assert not os.path.exists(response.json()["id"])


def test_a_payload_of_another_version_fails_with_a_reason(service):
    response = service.post({"prompt": "a", **SHORT})
    job = service.queue.fetch_job(response.json()["id"])
    rewrite(job, "anything", (job.id, {"v": 2}))
    assert service.finish(response)["error"]["code"] == "invalid_request"


def test_an_error_of_the_model_is_not_shown(service, monkeypatch):
    def broken(*_):
        raise RuntimeError("secret")

    monkeypatch.setattr(service.predictor.pipeline.denoiser, "forward", broken)
    done = service.finish(service.post({"prompt": "a", **SHORT}))
    assert (done["status"], done["error"]["code"]) == ("failed", "generation_failed")
    assert "secret" not in str(done)


def test_a_job_that_loses_worker_after_worker_fails(service):
    generation_id = service.post({"prompt": "a", **SHORT}).json()["id"]
    for _ in range(3):
        assert service.state.get(generation_id).status == "queued"
        assert service.state.start(generation_id, batched_with_others=False)
        service.worker.runner.requeue(generation_id)
    assert service.state.get(generation_id).error.code == "worker_lost"
    assert not service.state.start(generation_id, batched_with_others=False)  # final is final


def test_a_job_that_lost_its_worker_in_a_batch_reruns_alone(service):
    response = service.post({"prompt": "a", **SHORT})
    generation_id = response.json()["id"]
    for _ in range(5):
        assert service.state.start(generation_id, batched_with_others=True)
        service.worker.runner.requeue(generation_id)
    status_view = service.state.status_views([generation_id])[0]
    assert (status_view.lost, status_view.run_alone) == (0, True)
    assert service.finish(response)["status"] == "succeeded"


def test_a_job_that_was_lost_too_often_is_not_started_again(service):
    response = service.post({"prompt": "a", **SHORT})
    for _ in range(3):
        service.state.start(response.json()["id"], batched_with_others=False)
        service.state.abandon(response.json()["id"])
    assert service.finish(response)["error"]["code"] == "worker_lost"


def test_a_job_that_runs_into_its_time_limit_fails(service, monkeypatch):
    response = service.post({"prompt": "a", **SHORT, "num_inference_steps": 200})
    service.redis.hset(f"rq:job:{response.json()['id']}", "timeout", 1)
    during(service, monkeypatch, lambda: time.sleep(1.1))
    assert service.finish(response)["error"]["code"] == "timeout"


def test_what_expired_is_gone_with_its_files(service):
    service.state.result_ttl_s = 0
    response = service.post(files={"image": ("x", image("PNG"))}, data=SHORT)
    done = service.finish(response)
    assert done["status"] == "succeeded"
    folder = Path(service.storage._root) / done["id"]
    assert folder.is_dir()
    assert sweep(service.state, service.storage) == 1
    assert not folder.exists()
    check_problem(service.client.get(response.headers["location"]), 410, "gone")
    check_problem(service.client.get(done["outputs"][0]["url"]), 410, "gone")
    assert sweep(service.state, service.storage) == 0


def test_files_that_cannot_be_removed_hold_up_no_others(service, monkeypatch):
    service.state.result_ttl_s = 0
    stuck, _ = (service.finish(service.post({"prompt": "a", **SHORT}))["id"] for _ in range(2))
    delete = service.storage.delete

    def refuses(generation_id):
        if generation_id == stuck:
            raise StorageUnavailable("locked")
        delete(generation_id)

    monkeypatch.setattr(service.storage, "delete", refuses)
    assert sweep(service.state, service.storage) == 1
    assert [path.name for path in Path(service.storage._root).iterdir()] == [stuck]
    assert sweep(service.state, service.storage) == 0  # tried again later
    monkeypatch.undo()
    service.state.postpone(stuck, -1)
    assert sweep(service.state, service.storage) == 1
    assert not list(Path(service.storage._root).iterdir())


def test_what_has_not_expired_stays(service):
    done = service.finish(service.post({"prompt": "a", **SHORT}))
    assert sweep(service.state, service.storage) == 0
    assert done["expires_at"] == pytest.approx(done["finished_at"] + service.state.result_ttl_s)


def test_an_image_whose_request_was_never_queued_is_removed(service, monkeypatch):
    monkeypatch.setattr(Queue, "push_job_id", lambda *_, **__: 1 / 0)
    monkeypatch.setattr("clipsynth.jobs.store.RESERVATION_S", 0)
    assert service.post(files={"image": ("x", image("PNG"))}).status_code == 500
    assert len(list(Path(service.storage._root).iterdir())) == 1
    assert sweep(service.state, service.storage) == 1
    assert not list(Path(service.storage._root).iterdir())


def test_a_queued_generation_is_canceled_at_once(service):
    response = service.post({"prompt": "a", **SHORT})
    canceled = service.client.post(response.json()["links"]["cancel"])
    assert (canceled.status_code, canceled.json()["status"]) == (200, "canceled")
    assert service.queue.count == 0
    assert not service.redis.keys("rq:job:*")
    assert service.finish(response)["status"] == "canceled"
    check_problem(service.client.post(response.json()["links"]["cancel"]), 409, "already_ended")


def during(service, monkeypatch, act):
    """Have `act` done before the second step of whatever is generated."""
    denoiser = service.predictor.pipeline.denoiser
    forward = denoiser.forward
    steps = itertools.count()

    def acting(*arguments):
        if next(steps) == 1:
            act()
        return forward(*arguments)

    monkeypatch.setattr(denoiser, "forward", acting)


def test_a_generation_is_canceled_while_it_is_processed(service, monkeypatch):
    response = service.post({"prompt": "a", **SHORT, "num_outputs": 3})
    link = response.headers["location"]
    answers = []
    during(service, monkeypatch, lambda: answers.append(service.client.post(f"{link}/cancel")))
    assert service.finish(response)["status"] == "canceled"
    assert [(a.status_code, a.json()["status"]) for a in answers] == [(202, "processing")]


def test_a_worker_presumed_lost_keeps_the_first_sound(service, monkeypatch):
    response = service.post({"prompt": "a", **SHORT})
    generation_id = response.json()["id"]
    output = Output(
        index=0,
        url=f"/v1/generations/{generation_id}/audio/0",
        media_type="audio/wav",
        format="wav",
        duration_s=0.5,
        sample_rate=16000,
        seed=0,
    )

    def succeed():
        service.storage.put(audio_key(f"{generation_id}/0123abcd", 0, "wav"), b"first")
        fields = {"outputs": [output.model_dump()], "attempt": "0123abcd"}
        service.state.transition(generation_id, "succeeded", **fields)

    during(service, monkeypatch, succeed)
    done = service.finish(response)
    assert done["status"] == "succeeded"
    assert service.client.get(done["outputs"][0]["url"]).content == b"first"


def test_a_lost_generation_that_was_canceled_is_not_run_again(service):
    response = service.post({"prompt": "a", **SHORT})
    service.state.start(response.json()["id"], batched_with_others=False)
    assert service.client.post(response.headers["location"] + "/cancel").status_code == 202
    service.worker.runner.requeue(response.json()["id"])
    assert service.finish(response)["status"] == "canceled"


@pytest.mark.parametrize("ended", [False, True])
def test_delete_forgets_a_generation_and_its_files(service, ended):
    response = service.post(files={"image": ("x", image("PNG"))}, data=SHORT)
    if ended:
        service.finish(response)
    assert service.client.delete(response.headers["location"]).status_code == 204
    check_problem(service.client.get(response.headers["location"]), 410, "gone")
    check_problem(service.client.delete(response.headers["location"]), 410, "gone")
    assert service.queue.count == 0
    assert not list(Path(service.storage._root).iterdir())


def test_delete_stops_what_is_processed(service, monkeypatch):
    response = service.post({"prompt": "a", **SHORT, "num_outputs": 3})
    answers = []
    during(service, monkeypatch, lambda: answers.append(service.client.delete(response.headers["location"])))
    service.worker.work(burst=True, logging_level="ERROR")
    assert [a.status_code for a in answers] == [202]
    check_problem(service.client.get(response.headers["location"]), 410, "gone")
    assert not Path(service.storage._root).exists() or not list(Path(service.storage._root).iterdir())


def test_pages_lead_through_all_generations_the_newest_first(service):
    made = [service.post({"prompt": "a", **SHORT}).json()["id"] for _ in range(5)]
    listed, cursor = [], None
    while True:
        page = service.client.get(
            "/v1/generations", params={"limit": 2, "cursor": cursor} if cursor else {"limit": 2}
        ).json()
        listed += [g["id"] for g in page["data"]]
        service.post({"prompt": "newer ones do not move the pages", **SHORT})
        if not (cursor := page["next_cursor"]):
            break
    assert listed == made[::-1]


def test_a_page_of_a_rare_status_is_short_and_leads_on(service, monkeypatch):
    monkeypatch.setattr("clipsynth.jobs.record.PAGE", 2)
    monkeypatch.setattr("clipsynth.jobs.record.MAX_SEEN", 4)
    rare = service.post({"prompt": "a", **SHORT})
    service.client.post(rare.headers["location"] + "/cancel")
    for _ in range(5):
        service.post({"prompt": "a", **SHORT})
    first = service.client.get("/v1/generations", params={"status": "canceled"}).json()
    assert first["data"] == []
    cursor = first["next_cursor"]
    second = service.client.get("/v1/generations", params={"status": "canceled", "cursor": cursor}).json()
    assert [g["links"]["self"] for g in second["data"]] == [rare.headers["location"]]
    assert second["next_cursor"] is None


def test_conditions_and_ranges_are_of_a_get_alone(service):
    headers = {"prefer": "wait=0", "range": "bytes=0-3", "if-none-match": "*", "accept": "audio/wav"}
    made = service.post({"prompt": "a", "seed": 1, **SHORT})
    service.finish(made)
    url = made.headers["location"] + "/audio/0"
    assert service.client.get(url, headers={"range": "bytes=0-3"}).status_code == 206
    request = Request({"type": "http", "method": "POST", "headers": Headers(headers).raw})
    answer = file_response(request, b"RIFF...", media_type="audio/wav", disposition="inline")
    assert (answer.status_code, answer.body) == (200, b"RIFF...")


def test_a_list_can_be_of_one_status(service):
    canceled = service.post({"prompt": "a", **SHORT})
    queued = service.post({"prompt": "a", **SHORT})
    service.client.post(canceled.headers["location"] + "/cancel")
    for status, response in (("canceled", canceled), ("queued", queued)):
        page = service.client.get("/v1/generations", params={"status": status}).json()
        assert [g["id"] for g in page["data"]] == [response.json()["id"]]
    service.client.delete(canceled.headers["location"])
    assert service.client.get("/v1/generations", params={"status": "canceled"}).json()["data"] == []


@pytest.mark.parametrize(
    "query",
    ["limit=0", "limit=101", "limit=x", "status=lost", "cursor=abc", "cursor=%C3%A4", "cursor=bmFuIGE="],
)
def test_a_bad_page_is_a_problem(service, query):
    check_problem(service.client.get(f"/v1/generations?{query}"), 422, "invalid_request")


def test_an_idempotency_key_makes_one_generation(service):
    def post(**body):
        return service.post({"prompt": "a", **SHORT, **body}, headers={"idempotency-key": "order 66"})

    first, again = post(), post()
    assert again.json()["id"] == first.json()["id"]
    assert again.json()["seed"] == first.json()["seed"]
    assert [r.headers.get("idempotent-replayed") for r in (first, again)] == [None, "true"]
    assert service.queue.count == 1
    check_problem(post(seed=1), 422, "idempotency_mismatch")


def test_an_idempotency_key_survives_a_request_that_was_cut_off(service, monkeypatch):
    headers = {"idempotency-key": "k"}
    with monkeypatch.context() as patch:
        patch.setattr(Queue, "push_job_id", lambda *_, **__: 1 / 0)
        assert service.post({"prompt": "a"}, headers=headers).status_code == 500
    assert service.post({"prompt": "a"}, headers=headers).status_code == 202
    assert service.queue.count == 1


def test_metrics_count_requests_jobs_and_models(service):
    response = service.post({"prompt": "a", **SHORT})
    waiting = service.client.get("/metrics").text
    assert 'clipsynth_queue_depth{model="tiny"} 1.0' in waiting
    assert 'clipsynth_model_ready{model="tiny"} 1.0' in waiting
    service.finish(response)
    text = service.client.get("/metrics").text
    assert 'clipsynth_generations_ended_total{status="succeeded"} 1.0' in text
    assert 'http_requests_total{method="POST",route="/v1/generations",status="202"} 1.0' in text
    assert response.json()["id"] not in text


def test_the_docs_page_loads_nothing_from_elsewhere(service):
    page = service.client.get("/docs")
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert "//" not in page.text
    for path in re.findall(r'(?:src|href)="([^"]+)"', page.text):
        assert service.client.get(f"/{path}").status_code == 200
    assert service.client.get("/openapi.json").json()["info"]["title"] == "CLIPSynth"


def test_what_waits_beyond_its_deadline_expires(service):
    overdue = service.post({"prompt": "a", "deadline_s": 0.01, **SHORT})
    waiting = service.post({"prompt": "a", "deadline_s": 100, **SHORT})
    time.sleep(0.02)
    assert expire(service.state) == 1
    assert expire(service.state) == 0
    assert service.client.get(overdue.headers["location"]).json()["status"] == "expired"
    assert service.queue.job_ids == [waiting.json()["id"]]
    check_problem(service.client.get(overdue.headers["location"] + "/audio/0"), 409, "not_ready")
    assert service.finish(waiting)["status"] == "succeeded"


def test_the_worker_takes_nothing_that_is_overdue(service, monkeypatch):
    overdue = service.post({"prompt": "a", "deadline_s": 0.01, **SHORT})
    time.sleep(0.02)
    during(service, monkeypatch, lambda: pytest.fail("it was run"))
    assert service.finish(overdue)["status"] == "expired"
