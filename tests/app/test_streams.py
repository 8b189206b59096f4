"""Event streams: their number, what a change costs, and keys that are revoked meanwhile."""

from __future__ import annotations

import asyncio
import json
import socket
import urllib.request

import pytest
from redis import Redis

from app.notifications import Notifications
from clipsynth.jobs.store import JobStore
from clipsynth.schemas.generation import Generation, Status
from clipsynth.security.api_keys import create_key, revoke_key
from clipsynth.services.processes import wait_until
from clipsynth.settings import Settings
from tests.support.api_client import queued
from tests.support.api_server import api_server


@pytest.fixture
def port(redis_url, tmp_path):
    with api_server(redis_url, tmp_path, streams_per_key=2, allow_anonymous=True) as server:
        yield server


def made(port, token=""):
    headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {token}"} if token else {})
    body = json.dumps({"prompt": "a dog"}).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/generations", body, headers)
    with urllib.request.urlopen(request) as response:
        return response.headers["location"]


def follow(port, location, token=""):
    """Return a connection whose stream has begun, or the status of a refusal."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=10)
    key = f"Authorization: Bearer {token}\r\n" if token else ""
    connection.sendall(f"GET {location}/events HTTP/1.1\r\nHost: localhost\r\n{key}\r\n".encode())
    received = b""
    while b"\r\n\r\n" not in received:
        received += connection.recv(65536)
    if b"event-stream" in received:
        return connection
    connection.close()
    return int(received.split()[1])


def ended(connection):
    """Read to the end of the stream."""
    while connection.recv(65536):
        pass


def test_the_streams_of_a_key_are_bounded(port):
    location = made(port)
    held = [follow(port, location) for _ in range(2)]
    assert follow(port, location) == 429
    for connection in held:
        connection.close()
    assert wait_until(lambda: follow(port, location) != 429, timeout_s=10)


def test_a_stream_ends_with_its_key(port, redis_url):
    with Redis.from_url(redis_url) as redis:
        (one, token), (_, other) = (create_key(redis, name, ["generate", "read"]) for name in "ab")
        ending, going_on = (follow(port, made(port, key), key) for key in (token, other))
        revoke_key(redis, one.id)
        ended(ending)
        going_on.settimeout(0.1)
        with pytest.raises(TimeoutError):
            ended(going_on)
        ending.close()
        going_on.close()


def test_all_streams_share_the_text_of_a_change(redis_url, tmp_path, monkeypatch):
    settings = Settings(redis_url=redis_url, data_dir=tmp_path)
    dumped, dump = [], Generation.model_dump_json
    with Redis.from_url(redis_url) as redis:
        redis.flushall()
        state = JobStore.from_settings(redis, settings)
        generation_id = queued(state)
        shared = Notifications(redis_url, state)
        monkeypatch.setattr(Generation, "model_dump_json", lambda g: dumped.append(g.status) or dump(g))

        async def run():
            begun = asyncio.Semaphore(0)

            async def read():
                events = []
                async for event in shared.stream(generation_id, "anonymous"):
                    events.append(event)
                    begun.release()
                return events

            readers = [asyncio.create_task(read()) for _ in range(50)]
            for _ in readers:
                await begun.acquire()
            await asyncio.to_thread(state.transition, generation_id, Status.CANCELED)
            shared._wake(generation_id, ended=True)
            return await asyncio.gather(*readers)

        assert {len(events) for events in asyncio.run(run())} == {2}
    assert dumped == ["queued", "canceled"]
