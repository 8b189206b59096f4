"""The shim in ElevenLabs' shape, over the service of test_generations."""

from __future__ import annotations

import io
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import pytest
import soundfile

from app.routes.elevenlabs import guidance_scale
from clipsynth.schemas.generation import Problem, Status
from clipsynth.schemas.model_info import ModelCost
from clipsynth.security.api_keys import create_key
from clipsynth.services.processes import wait_until
from clipsynth.settings import Settings
from tests.support.api_service import check_problem, serving
from tests.support.http_server import api_on_a_socket

SLOW = ModelCost(audio_step_s=2, step_s=100, guided_share=0.5)


@pytest.fixture
def settings(redis_url, tmp_path):
    return Settings(redis_url=redis_url, data_dir=tmp_path)


@pytest.fixture
def service(settings, tiny_pipeline):
    yield from serving(settings, tiny_pipeline)


@pytest.fixture
def url(settings):
    with api_on_a_socket(settings) as url:
        yield url


def ask(service, act, headers=None, params=None, **body):
    """Post, and have `act` called with the id of the generation when it is queued."""
    assert wait_until(lambda: service.redis.pubsub_numpat() > 0, timeout_s=30)  # the API listens
    responses = []
    request = {"text": "a dog", "duration_seconds": 0.5, **body}
    post = threading.Thread(
        target=lambda: responses.append(
            service.client.post("/v1/sound-generation", json=request, headers=headers, params=params)
        )
    )
    post.start()
    while post.is_alive() and not (ids := service.queue.get_job_ids()):
        post.join(0.01)
    if post.is_alive():
        act(ids[0])
    post.join()
    return responses[0]


def work(service):
    return lambda _: service.worker.work(burst=True, logging_level="ERROR")


def test_the_response_is_the_sound_of_a_generation(service):
    response = ask(service, work(service), prompt_influence=0.6, model_id="eleven_text_to_sound_v2")
    assert (response.status_code, response.headers["content-type"]) == (200, "audio/mpeg")
    assert soundfile.info(io.BytesIO(response.content)).format == "MP3"
    made = service.client.get(f"/v1/generations/{response.headers['generation-id']}").json()
    own = service.info.guidance_scale
    assert made["input"] | {"seed": 0} == made["input"] | {
        "prompt": "a dog",
        "duration_s": 0.5,
        "guidance_scale": pytest.approx(1 + 2 * (own - 1)),
        "output_formats": ["mp3"],
        "model": "tiny",
        "seed": 0,
    }


@pytest.mark.parametrize(
    ("wanted", "made"), [("wav", "WAV"), ("wav_44100", "WAV"), ("flac", "FLAC"), ("mp3_24000_48", "MP3")]
)
def test_the_output_format_is_the_requested_one(service, wanted, made):
    response = ask(service, work(service), params={"output_format": wanted})
    assert soundfile.info(io.BytesIO(response.content)).format == made


def test_a_loop_is_made_as_one(service):
    response = ask(service, work(service), loop=True, duration_seconds=0.6, params={"output_format": "wav"})
    assert soundfile.info(io.BytesIO(response.content)).frames == 15 * 4 * 160
    made = service.client.get(f"/v1/generations/{response.headers['generation-id']}").json()
    assert made["input"]["loop"]


def test_prompt_influence_maps_linearly_to_guidance():
    assert [guidance_scale(x, 4.0) for x in (0, 0.3, 0.6)] == [1.0, 4.0, 7.0]
    assert guidance_scale(1.0, 8.0) == 20.0


@pytest.mark.parametrize(
    ("body", "params", "code"),
    [
        ({"text": ""}, {}, "invalid_request"),
        ({"text": " "}, {}, "invalid_request"),
        ({"duration_seconds": 61}, {}, "too_long"),
        ({"duration_seconds": 0.4}, {}, "invalid_request"),
        ({"prompt_influence": 1.1}, {}, "invalid_request"),
        ({"loop": "yes"}, {}, "invalid_request"),
        ({"loop": 0}, {}, "invalid_request"),
        ({"voice": "a"}, {}, "invalid_request"),
        ({"model_id": "other"}, {}, "model_not_found"),
        ({}, {"output_format": "wav_1"}, "invalid_request"),
        ({}, {"output_format": "pcm_44100"}, "invalid_request"),
        ({}, {"output_format": "opus_48000_64"}, "invalid_request"),
    ],
)
def test_unsupported_fields_are_rejected(service, body, params, code):
    request = {"text": "a dog", **body}
    response = service.client.post("/v1/sound-generation", json=request, params=params)
    check_problem(response, 422, code)


@pytest.mark.parametrize("header", ["xi-api-key", "authorization"])
def test_xi_api_key_is_accepted_on_this_route_only(service, header):
    _, token = create_key(service.redis, "me", ["generate", "read"])
    value = token if header == "xi-api-key" else f"Bearer {token}"
    assert ask(service, work(service), headers={header: value}).status_code == 200
    for headers in ({}, {header: "cs_wrong"}):
        check_problem(ask(service, work(service), headers=headers), 401, "unauthorized")
    elsewhere = service.client.post("/v1/generations", json={"prompt": "a"}, headers={"xi-api-key": token})
    check_problem(elsewhere, 401, "unauthorized")


def names(response):
    return [error["pointer"] for error in response.json().get("errors", [])]


def test_errors_name_only_fields_that_were_sent(service):
    def post(**body):
        return service.client.post("/v1/sound-generation", json={"text": "a dog", **body})

    assert names(post(text=" ")) == ["/text"]
    assert names(post(duration_seconds=61)) == ["/duration_seconds"]
    assert post(duration_seconds=61).json()["detail"].startswith("/duration_seconds: a sound has at most")
    service.state.announce(service.info.model_copy(update={"cost": SLOW}))
    too_late = post(duration_seconds=5)
    check_problem(too_late, 422, "deadline_unreachable")
    assert too_late.json()["detail"].startswith("it would take about")


def test_an_open_service_takes_any_xi_api_key(service):
    assert ask(service, work(service), headers={"xi-api-key": "sk_of_elevenlabs"}).status_code == 200


def test_the_real_client_gets_its_sounds(service, url):
    from elevenlabs import ElevenLabs, UnprocessableEntityError

    eleven = ElevenLabs(base_url=url, api_key="sk_of_elevenlabs")
    wanted = {"text": "a dog", "duration_seconds": 0.5, "prompt_influence": 0.5}
    for output_format, made in ((None, "MP3"), ("wav_16000", "WAV"), ("mp3_22050_32", "MP3")):
        with ThreadPoolExecutor(1) as other:
            sound = other.submit(
                lambda f: b"".join(eleven.text_to_sound_effects.convert(output_format=f, **wanted)),
                output_format,
            )
            assert wait_until(service.queue.get_job_ids, timeout_s=30)
            service.worker.work(burst=True, logging_level="ERROR")
            assert soundfile.info(io.BytesIO(sound.result())).format == made
    with pytest.raises(UnprocessableEntityError) as error:
        list(eleven.text_to_sound_effects.convert(text="a dog", output_format="ulaw_8000"))
    assert error.value.body["code"] == "invalid_request"


def test_a_client_that_leaves_cancels_its_job(service, url):
    body = b'{"text": "a dog"}'
    head = f"POST /v1/sound-generation HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
    with socket.create_connection(("127.0.0.1", urlsplit(url).port)) as client:
        client.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
        assert wait_until(service.queue.get_job_ids, timeout_s=30)
    [left] = service.client.get("/v1/generations").json()["data"]
    assert wait_until(lambda: service.state.get(left["id"]).status is Status.CANCELED, timeout_s=30)
    assert service.queue.get_job_ids() == []


@pytest.mark.parametrize(
    ("end", "status", "code"),
    [
        (lambda state, i: state.fail(i, Problem(code="x", detail="why")), 500, "generation_failed"),
        (lambda state, i: state.transition(i, Status.CANCELED), 500, "generation_failed"),
        (lambda state, i: state.transition(i, Status.EXPIRED), 504, "not_in_time"),
    ],
)
def test_a_failed_generation_is_a_problem_with_its_id(service, end, status, code):
    ids = []

    def act(generation_id):
        ids.append(generation_id)
        end(service.state, generation_id)

    response = ask(service, act)
    check_problem(response, status, code)
    assert ids[0] in response.json()["detail"]
