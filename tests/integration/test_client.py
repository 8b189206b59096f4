"""The client against a real service, and against scripted answers for faults at a set moment."""

from __future__ import annotations

import asyncio
import os
import signal

import httpx
import pytest
from PIL import Image

from clipsynth.client.client import AsyncClient, Client, ServiceError
from clipsynth.schemas.generation import Status
from clipsynth.services.processes import wait_until
from tests.support.service import TIMEOUT_S

LONG = {"num_inference_steps": 200, "duration_s": 2.0, "num_outputs": 2}


@pytest.fixture(scope="module")
def client(served):
    service, _ = served
    service.wait_for_worker()
    with Client(service.url, patience_s=TIMEOUT_S) as client:
        yield client


def test_a_prompt_becomes_files(client, tmp_path):
    seen = []
    sounds = client.generate("a dog", duration_s=0.5, num_outputs=2, seed=7, on_progress=seen.append)
    paths = sounds.save(tmp_path / "dog.wav")
    assert [path.name for path in paths] == ["dog.wav", "dog-1.wav"]
    assert all(path.read_bytes()[:4] == b"RIFF" for path in paths)
    assert [sound.output.seed for sound in sounds] == [7, 8]
    # A shell shows the result.
    assert repr(sounds[0]) == f"<Sound 0: wav, 0.5 s, seed 7, {len(sounds[0].data)} bytes>"
    assert len(repr(sounds)) < 300
    assert seen[-1].status is Status.SUCCEEDED


def test_unknown_sounds_are_logged(client, caplog):
    sounds = client.generate("church bells", duration_s=0.5)
    assert [warning.code for warning in sounds.generation.warnings] == ["unfamiliar"]
    assert caplog.messages == [warning.detail for warning in sounds.generation.warnings]
    assert client.estimate("church bells").warnings == sounds.generation.warnings
    assert 0 < client.models()[0].sounds[0].share <= 1


def test_an_image_becomes_a_sound_in_another_format(client, tmp_path):
    Image.new("RGB", (32, 32), "red").save(tmp_path / "red.png")
    sounds = client.generate(image=tmp_path / "red.png", duration_s=0.5, output_formats=["wav", "flac"])
    flac = client.sounds(sounds.generation, output_format="flac")
    assert (sounds[0].data[:4], flac[0].data[:4]) == (b"RIFF", b"fLaC")


def test_a_set_is_composed_as_requested(client):
    prompts = [{"text": "piano"}, {"text": "rain", "weight": 0.5}]
    options = {"prompts": prompts, "duration_s": 0.5, "seed": 7}
    sounds = [client.generate(composition=c, **options) for c in ("set", "compose", "mix")]
    assert [s.generation.input.composition for s in sounds] == ["set", "compose", "mix"]
    assert len({s[0].data for s in sounds}) == 3


def test_the_async_client_generates_concurrently(served):
    service, _ = served

    async def both():
        async with AsyncClient(service.url, patience_s=TIMEOUT_S) as client:
            return await asyncio.gather(*(client.generate(word, duration_s=0.5) for word in ("a", "b")))

    assert [len(sounds) for sounds in asyncio.run(both())] == [1, 1]


def test_the_client_covers_the_rest_of_the_api(client):
    assert [model.name for model in client.models()] == ["tiny"]
    assert client.estimate("a dog").model == "tiny"
    generation = client.generate("a dog", duration_s=0.5).generation
    again = client.replay(generation.outputs[0].recipe)
    assert [g.status for g in client.follow(again.id)][-1] is Status.SUCCEEDED
    for made in (client.vary(generation.id, strength=0.3), client.extend(generation.id, 0.5, seed=1)):
        [*_, last] = client.follow(made.id)
        assert (last.status, last.parent.id) == (Status.SUCCEEDED, generation.id)
    with pytest.raises(ServiceError, match="has ended"):
        client.cancel(generation.id)
    client.forget(generation.id)
    with pytest.raises(ServiceError) as gone:
        client.get(generation.id)
    assert (gone.value.status, gone.value.code) == (410, "gone")


def test_a_rejected_request_raises_with_its_code(client):
    with pytest.raises(ServiceError) as refused:
        client.generate("a dog", duration_s=100)
    assert (refused.value.status, refused.value.code) == (422, "too_long")


def test_a_canceled_generation_is_an_error(client):
    generation = client.submit("a dog", **LONG)
    client.cancel(generation.id)
    *_, last = client.follow(generation.id)
    with pytest.raises(ServiceError) as canceled:
        client.sounds(last)
    assert canceled.value.code == "canceled"


@pytest.mark.parametrize("victim", [" worker", "redis-server", " api"])
def test_the_sound_arrives_after_a_process_is_killed(served, client, victim):
    service, _ = served
    service.wait_for_worker()
    generation = client.submit("a dog", **LONG)
    killed = service.pid(victim)
    changes = client.follow(generation.id)
    assert any(generation.status is Status.PROCESSING for generation in changes)
    os.kill(killed, signal.SIGKILL)
    *_, last = changes
    assert len(client.sounds(last)) == 2
    assert wait_until(lambda: service.pid(victim) not in (None, killed), timeout_s=TIMEOUT_S)


def test_the_client_waits_for_a_full_queue_with_the_same_key():
    keys = []

    def answer(request: httpx.Request) -> httpx.Response:
        keys.append(request.headers["Idempotency-Key"])
        if len(keys) < 3:
            told = {"code": "queue_full", "detail": "full"}
            return httpx.Response(429, json=told, headers={"Retry-After": "0"})
        return httpx.Response(422, json={"code": "invalid_request", "detail": "enough"})

    async def submit():
        async with AsyncClient("http://x", transport=httpx.MockTransport(answer)) as client:
            await client.submit("a dog")

    with pytest.raises(ServiceError, match="enough"):
        asyncio.run(submit())
    assert len(keys) == 3
    assert len(set(keys)) == 1


def test_patience_ends_with_the_last_refusal():
    def answer(_: httpx.Request) -> httpx.Response:
        return httpx.Response(
            429, json={"code": "queue_full", "detail": "full"}, headers={"Retry-After": "9"}
        )

    async def submit():
        async with AsyncClient("http://x", patience_s=5, transport=httpx.MockTransport(answer)) as client:
            await client.submit("a dog")

    with pytest.raises(ServiceError) as full:
        asyncio.run(submit())
    assert (full.value.code, full.value.retry_after_s) == ("queue_full", 9)


def test_no_service_is_told_in_words():
    with Client("http://127.0.0.1:9", patience_s=0) as client, pytest.raises(ServiceError) as nobody:
        client.models()
    assert nobody.value.code == "unreachable"
