"""HTTP to worker and back, over a real Redis."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
import soundfile
from fastapi.testclient import TestClient
from redis.exceptions import ConnectionError
from rq import Queue
from starlette.datastructures import Headers
from starlette.requests import Request

from app.main import create_app
from app.responses.ranges import file_response
from clipsynth.jobs import store
from clipsynth.redis_keys import SEEN
from clipsynth.settings import Settings
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


def test_conditions_and_ranges_are_of_a_get_alone(service):
    headers = {"prefer": "wait=0", "range": "bytes=0-3", "if-none-match": "*", "accept": "audio/wav"}
    made = service.post({"prompt": "a", "seed": 1, **SHORT})
    service.finish(made)
    url = made.headers["location"] + "/audio/0"
    assert service.client.get(url, headers={"range": "bytes=0-3"}).status_code == 206
    request = Request({"type": "http", "method": "POST", "headers": Headers(headers).raw})
    account = service.client.app.state.services.budgets.downloads, "anonymous"
    whole = {"media_type": "audio/wav", "disposition": "inline", "account": account}
    answer = file_response(request, b"RIFF...", **whole)
    assert (answer.status_code, answer.body) == (200, b"RIFF...")


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
