"""Redis away, a full disk, a read-only folder: typed errors, red readiness, and a full recovery."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import shutil
import time
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from app import notifications
from app.notifications import Notifications
from clipsynth.jobs.store import JobStore
from clipsynth.schemas.generation import Status
from clipsynth.services.embedded_redis import EmbeddedRedis
from clipsynth.settings import Settings
from tests.support import api_client
from tests.support.api_client import queued
from tests.support.api_service import SHORT, check_problem, image, serving


@pytest.fixture
def service(redis_url, tiny_pipeline, tmp_path):
    yield from serving(Settings(redis_url=redis_url, data_dir=tmp_path), tiny_pipeline)


@pytest.fixture
def own_redis(tmp_path):
    server = EmbeddedRedis(tmp_path)
    yield server
    server.stop()


def kill(server):
    server.process.kill()
    server.process.wait()


def test_redis_goes_and_comes_back(own_redis, tmp_path):
    client = api_client.Service(Settings(redis_url=own_redis.url, data_dir=tmp_path)).client
    client.raise_server_exceptions = False
    with client:
        made = client.post("/v1/generations", json={"prompt": "a"})
        assert client.get("/readyz").status_code == 200
        kill(own_redis)
        for answer in (
            client.post("/v1/generations", json={"prompt": "a"}),
            client.get(made.headers["location"]),
            client.get("/v1/generations"),
            client.get("/readyz"),
        ):
            check_problem(answer, 503, "redis_unavailable")
            assert int(answer.headers["retry-after"]) > 0
        assert client.get("/healthz").status_code == 200
        own_redis.start()
        assert client.get("/readyz").status_code == 200
        assert client.get(made.headers["location"]).json()["status"] == "queued"
        assert client.post("/v1/generations", json={"prompt": "a"}).status_code == 202
        assert len(client.get("/v1/generations").json()["data"]) == 2


async def followed(events_, generation_id, act):
    """Follow a generation, let `act` happen after its first event, and return the events' names."""
    listening = asyncio.create_task(events_.listen())
    try:
        names = []
        async with asyncio.timeout(20):
            async for event in events_.stream(generation_id, "anonymous"):
                names += [
                    line.removeprefix("event: ")
                    for line in event.decode().splitlines()
                    if line.startswith("event")
                ]
                if len(names) == 1:
                    await asyncio.to_thread(act)
        return names
    finally:
        listening.cancel()


def test_a_stream_of_events_ends_though_redis_was_away(own_redis, tmp_path, monkeypatch):
    monkeypatch.setattr(notifications, "RECONNECT_S", 0.05)
    settings = Settings(redis_url=own_redis.url, data_dir=tmp_path)
    with Redis.from_url(own_redis.url) as redis:
        state = JobStore.from_settings(redis, settings)
        generation_id = queued(state)

        def outage():
            kill(own_redis)
            own_redis.start()
            state.transition(generation_id, Status.CANCELED)

        assert asyncio.run(followed(Notifications(own_redis.url, state), generation_id, outage)) == [
            "status",
            "completed",
        ]


def test_those_who_follow_a_generation_share_one_look(redis_url, tmp_path, monkeypatch):
    settings = Settings(redis_url=redis_url, data_dir=tmp_path)
    with Redis.from_url(redis_url) as redis:
        redis.flushall()
        state = JobStore.from_settings(redis, settings)
        generation_id = queued(state)
        looks = []
        get = state.get
        monkeypatch.setattr(state, "get", lambda i: (get(i), looks.append(i), time.sleep(0.1))[0])
        shared = Notifications(redis_url, state)

        async def follow():
            return [snapshot async for snapshot in shared.states(generation_id, "anonymous")][-1]

        async def run():
            followers = [asyncio.create_task(follow()) for _ in range(100)]
            while not looks:
                await asyncio.sleep(0)
            await asyncio.to_thread(state.transition, generation_id, Status.CANCELED)
            shared._wake(generation_id, ended=True)
            return await asyncio.gather(*followers)

        assert {s.generation.status for s in asyncio.run(run())} == {"canceled"}
        assert len(looks) == 2


def test_a_waiter_reads_only_what_its_subscription_missed(redis_url, tmp_path, monkeypatch):
    settings = Settings(redis_url=redis_url, data_dir=tmp_path)
    with Redis.from_url(redis_url) as redis:
        redis.flushall()
        state = JobStore.from_settings(redis, settings)
        missed, heard = (state.get(queued(state)) for _ in range(2))
        state.transition(missed.id, Status.CANCELED)
        heard_since, looks = time.monotonic(), []
        status_views = state.status_views
        monkeypatch.setattr(state, "status_views", lambda ids: (looks.append(ids), status_views(ids))[1])

        async def run():
            shared = Notifications(redis_url, state)
            listening = asyncio.create_task(shared.listen())
            async with asyncio.timeout(5):  # less than PING_S, after which anybody looks again
                while shared._listens_since > time.monotonic():
                    await asyncio.sleep(0.01)
                of_missed = await shared.wait(missed, 60, made_after=heard_since)
                began = time.monotonic()
                state.transition(heard.id, Status.CANCELED)
                while heard.id not in shared._ended:
                    await asyncio.sleep(0.01)
                of_heard = await shared.wait(heard, 60, made_after=began)
            listening.cancel()
            return of_missed.status, of_heard.status

        assert asyncio.run(run()) == ("canceled", "canceled")
        assert looks == [[missed.id]]


def test_a_waiter_gets_what_was_accepted_though_redis_is_away(redis_url, tmp_path, monkeypatch):
    monkeypatch.setattr(notifications, "RECONNECT_S", 0.01)
    settings = Settings(redis_url=redis_url, data_dir=tmp_path)
    with Redis.from_url(redis_url) as redis:
        redis.flushall()
        state = JobStore.from_settings(redis, settings)
        accepted, ended = (state.get(queued(state)) for _ in range(2))
        state.transition(ended.id, Status.CANCELED)
        get, looks = state.get, []

        def away(*_):
            looks.append(1)
            raise RedisConnectionError("away")

        monkeypatch.setattr(state, "status_views", away)
        monkeypatch.setattr(state, "get", away)
        waited = asyncio.run(Notifications(redis_url, state).wait(accepted, 0.1))
        assert (waited, len(looks) > 2) == (accepted, True)
        monkeypatch.setattr(state, "get", lambda i: get(i) if len(looks) > 20 else away())
        looks.clear()
        assert asyncio.run(Notifications(redis_url, state).wait(ended, 20)).status is Status.CANCELED


def test_the_api_ends_though_a_cancellation_is_lost(redis_url, tmp_path, monkeypatch):
    async def listen(_):
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        await asyncio.Event().wait()

    monkeypatch.setattr(Notifications, "listen", listen)
    with api_client.Service(Settings(redis_url=redis_url, data_dir=tmp_path)).client:
        pass


@contextlib.contextmanager
def full_disk():
    """No file of this process may grow beyond a few bytes: what is written is cut off, then fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextlib.contextmanager
def no_folder(root):
    """Where the results' folder was is a file."""
    shutil.rmtree(root, ignore_errors=True)
    root.touch()
    try:
        yield
    finally:
        root.unlink()


@pytest.mark.parametrize("fault", ["full", "no folder"])
def test_storage_fails_and_recovers(service, fault):
    root = Path(service.storage._root)
    assert service.client.get("/readyz").status_code == 200
    text = service.post({"prompt": "a", **SHORT})
    with full_disk() if fault == "full" else no_folder(root):
        refused = service.post(files={"image": ("x", image("PNG"))}, data=SHORT)
        check_problem(refused, 503, "storage_unavailable")
        assert int(refused.headers["retry-after"]) > 0
        check_problem(service.client.get("/readyz"), 503, "storage_unavailable")
        done = service.finish(text)
        assert (done["status"], done["error"]["code"]) == ("failed", "storage_failed")
    assert not [f for _, _, files in os.walk(root) for f in files]  # nothing half written
    assert service.client.get("/readyz").status_code == 200
    assert service.queue.count == 0
    done = service.finish(service.post(files={"image": ("x", image("PNG"))}, data=SHORT))
    assert done["status"] == "succeeded"
    with no_folder(root):
        check_problem(service.client.get(done["outputs"][0]["url"]), 503, "storage_unavailable")
        assert service.client.delete(done["links"]["self"]).status_code == 204
