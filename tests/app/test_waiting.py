"""`Prefer: wait` and server-sent events, while a stand-in for the worker changes the public state."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from fastapi.testclient import TestClient
from redis import Redis

from app import notifications as events
from app.main import create_app
from clipsynth.jobs.queue import get_queue
from clipsynth.jobs.store import JobStore
from clipsynth.schemas.generation import ModelInfo, Output, Progress
from clipsynth.services.processes import wait_until
from clipsynth.settings import Settings
from clipsynth.storage import Storage, audio_key

INFO = ModelInfo(
    name="tiny",
    version="0",
    sample_rate=16000,
    min_duration_s=0.5,
    max_duration_s=5,
    duration_s=4,
    num_inference_steps=2,
    guidance_scale=4,
)
SOUND = b"RIFF..."


def wait_for(heard):
    assert heard is None or heard.acquire(timeout=10)


class Service:
    def __init__(self, settings):
        self.redis = Redis.from_url(settings.redis_url)
        self.redis.flushall()
        self.state, self.storage = JobStore.from_settings(self.redis, settings), Storage(settings.results_url)
        self.state.announce(INFO)
        self.client = TestClient(create_app(settings), base_url="http://localhost")

    def work(self, heard=None):
        """Run the next job as a worker would; with `heard`, go on when those who follow have been told of what was done."""
        queue = get_queue("tiny", self.redis)
        assert wait_until(lambda: bool(queue.job_ids), timeout_s=10)
        job_id = queue.pop_job_id()
        wait_for(heard)
        self.state.start(job_id, batched_with_others=False)
        wait_for(heard)
        self.state.set_progress({job_id: Progress(step=1, num_steps=2)})
        wait_for(heard)
        self.storage.put(audio_key(job_id, 0, "wav"), SOUND)
        output = Output(
            index=0,
            url=f"/v1/generations/{job_id}/audio/0",
            media_type="audio/wav",
            format="wav",
            duration_s=4,
            sample_rate=16000,
            seed=0,
        )
        self.state.change(job_id, "succeeded", outputs=[output.model_dump()])

    def post(self, **headers):
        return self.client.post("/v1/generations", json={"prompt": "a dog"}, headers=headers)


@pytest.fixture
def service(redis_url, tmp_path):
    service = Service(Settings(redis_url=redis_url, data_dir=tmp_path))
    with service.client:
        yield service
    service.redis.close()


@pytest.fixture
def working(service):
    thread = threading.Thread(target=service.work)
    thread.start()
    yield service
    thread.join()


@pytest.fixture
def heard(monkeypatch):
    """A semaphore that counts what streams have told."""
    heard, stream = threading.Semaphore(0), events.Notifications.stream

    async def counted(self, *arguments, **options):
        async for event in stream(self, *arguments, **options):
            yield event
            heard.release()

    monkeypatch.setattr(events.Notifications, "stream", counted)
    return heard


def test_prefer_wait_answers_with_the_end(working):
    started = time.monotonic()
    response = working.post(prefer="respond-async, wait=10")
    assert time.monotonic() - started < 5
    assert (response.status_code, response.json()["status"]) == (200, "succeeded")
    assert response.headers["preference-applied"] == "wait=10"


def test_prefer_wait_and_accept_answer_with_the_sound(working):
    response = working.post(prefer="wait=10", accept="audio/wav")
    assert (response.status_code, response.content) == (200, SOUND)
    assert response.headers["content-type"] == "audio/wav"
    assert working.client.get(response.headers["location"]).json()["status"] == "succeeded"


def test_who_waits_for_the_end_reads_nothing_of_the_way_there(working, monkeypatch):
    reads, get = [], JobStore.get

    def counted(self, generation_id, **options):
        generation = get(self, generation_id, **options)
        reads.append(generation.status)
        return generation

    monkeypatch.setattr(JobStore, "get", counted)
    assert working.post(prefer="wait=10").status_code == 200
    assert reads == ["succeeded"]  # the answer of the POST itself is made of what was written


@pytest.mark.parametrize("prefer", ["wait=1", "wait=0", "wait=soon"])
def test_who_has_waited_long_enough_gets_202(service, prefer):
    response = service.post(prefer=prefer)
    assert (response.status_code, response.json()["status"]) == (202, "queued")
    assert "preference-applied" not in response.headers


def follow(service, location, **headers):
    """Return all (event, data) of a stream, at its end."""
    text = service.client.get(f"{location}/events", headers=headers).text
    fields = [dict(line.split(": ", 1) for line in block.split("\n")) for block in text.strip().split("\n\n")]
    return [(f["event"], json.loads(f["data"])) for f in fields if "event" in f]


def test_events_tell_of_each_change_and_end_with_the_resource(service, heard):
    with ThreadPoolExecutor(1) as worker:
        worker.submit(service.work, heard)
        told = follow(service, service.post().headers["location"])
    assert [(event, data["status"]) for event, data in told] == [
        ("status", "queued"),
        ("status", "processing"),
        ("progress", "processing"),
        ("completed", "succeeded"),
    ]
    assert told[2][1]["progress"] == {"step": 1, "num_steps": 2}


def test_who_comes_back_is_told_of_what_is_new(service, heard):
    with ThreadPoolExecutor(1) as worker:
        worker.submit(service.work, heard)
        told = follow(service, service.post().headers["location"], **{"last-event-id": "queued-0"})
    assert [data["status"] for _, data in told] == ["processing", "processing", "succeeded"]


def test_events_of_what_was_deleted_end(service, heard, monkeypatch):
    monkeypatch.setattr(events, "PING_S", 0.1)
    location = service.post().headers["location"]

    def forget():
        wait_for(heard)
        service.state.forget(location.rpartition("/")[2])

    with ThreadPoolExecutor(1) as other:
        other.submit(forget)
        assert [event for event, _ in follow(service, location)] == ["status", "gone"]
    assert service.client.get(f"{location}/events").status_code == 410
