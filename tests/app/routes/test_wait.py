"""`Prefer: wait` and server-sent events, while a stand-in for the worker changes the public state."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from app import notifications
from clipsynth.jobs.store import JobStore
from clipsynth.settings import Settings
from tests.support.api_client import SOUND, Service, wait_for


@pytest.fixture
def heard(monkeypatch):
    """A semaphore that counts the events of streams."""
    heard, stream = threading.Semaphore(0), notifications.Notifications.stream

    async def counted(self, *arguments, **options):
        async for event in stream(self, *arguments, **options):
            yield event
            heard.release()

    monkeypatch.setattr(notifications.Notifications, "stream", counted)
    return heard


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


def test_prefer_wait_returns_the_finished_generation(working):
    started = time.monotonic()
    response = working.post(prefer="respond-async, wait=10")
    assert time.monotonic() - started < 5
    assert (response.status_code, response.json()["status"]) == (200, "succeeded")
    assert response.headers["preference-applied"] == "wait=10"


@pytest.mark.parametrize("accept", ["audio/wav", "audio/*", "*/*;q=0.1, audio/*", "audio/x-wav"])
def test_prefer_wait_and_accept_return_the_sound(working, accept):
    response = working.post(prefer="wait=10", accept=accept)
    assert (response.status_code, response.content) == (200, SOUND)
    assert response.headers["content-type"] == "audio/wav"
    assert working.client.get(response.headers["location"]).json()["status"] == "succeeded"


def test_waiting_reads_only_the_final_state(working, monkeypatch):
    reads, get = [], JobStore.get

    def counted(self, generation_id, **options):
        generation = get(self, generation_id, **options)
        reads.append(generation.status)
        return generation

    monkeypatch.setattr(JobStore, "get", counted)
    assert working.post(prefer="wait=10").status_code == 200
    assert reads == ["succeeded"]  # the answer of the POST itself is made of what was written


@pytest.mark.parametrize("prefer", ["wait=1", "wait=0", "wait=soon"])
def test_a_wait_that_times_out_gets_202(service, prefer):
    response = service.post(prefer=prefer)
    assert (response.status_code, response.json()["status"]) == (202, "queued")
    assert "preference-applied" not in response.headers


def follow(service, location, **headers):
    """Return all (event, data) of a stream, at its end."""
    text = service.client.get(f"{location}/events", headers=headers).text
    fields = [dict(line.split(": ", 1) for line in block.split("\n")) for block in text.strip().split("\n\n")]
    return [(f["event"], json.loads(f["data"])) for f in fields if "event" in f]


def test_events_report_each_change_and_the_final_resource(service, heard):
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


def test_last_event_id_skips_known_events(service, heard):
    with ThreadPoolExecutor(1) as worker:
        worker.submit(service.work, heard)
        told = follow(service, service.post().headers["location"], **{"last-event-id": "queued-0"})
    assert [data["status"] for _, data in told] == ["processing", "processing", "succeeded"]


def test_a_client_with_the_final_event_gets_204(service):
    location = service.post().headers["location"] + "/events"
    service.work()
    for known, status in (("queued-0", 200), ("succeeded-0", 204)):
        response = service.client.get(location, headers={"last-event-id": known})
        assert (response.status_code, bool(response.content)) == (status, status == 200)


def test_events_of_a_deleted_generation_end(service, heard, monkeypatch):
    monkeypatch.setattr(notifications, "PING_S", 0.1)
    location = service.post().headers["location"]

    def forget():
        wait_for(heard)
        service.state.forget(location.rpartition("/")[2])

    with ThreadPoolExecutor(1) as other:
        other.submit(forget)
        assert [event for event, _ in follow(service, location)] == ["status", "gone"]
    assert service.client.get(f"{location}/events").status_code == 410
