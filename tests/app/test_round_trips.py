"""How often a request asks Redis."""

from __future__ import annotations

import pytest
from redis.connection import AbstractConnection

from clipsynth.schemas.model_info import ModelSound
from clipsynth.settings import Settings
from tests.support.admission import COST
from tests.support.api_client import INFO, Service


@pytest.fixture
def service(redis_url, tmp_path):
    service = Service(Settings(redis_url=redis_url, data_dir=tmp_path))
    sounds = [ModelSound(name="tabby", share=1.0)]
    service.state.announce(INFO.model_copy(update={"cost": COST, "sounds": sounds}))
    with service.client:
        yield service
    service.redis.close()


@pytest.fixture
def count(monkeypatch):
    """A function that returns the number of round trips since its last call."""
    sent = []
    send = AbstractConnection.send_packed_command
    monkeypatch.setattr(
        AbstractConnection, "send_packed_command", lambda *args, **kw: (sent.append(1), send(*args, **kw))[1]
    )

    def counted():
        number = len(sent)
        sent.clear()
        return number

    return counted


def test_requests_ask_redis_a_few_times_only(service, count):
    """The first of each kind makes connections and loads scripts. One trip asks whether there are keys."""
    location = service.post().headers["location"]
    service.client.get(location)
    count()
    location = service.post().headers["location"]
    assert count() == 4  # keys, models, place and load, job
    queued = service.client.get(location).json()
    assert count() == 2
    assert (queued["queue_position"], queued["eta_s"] > 0) == (1, True)
    for _ in range(2):
        service.work()
    count()
    assert service.client.get(location).json()["status"] == "succeeded"
    assert count() == 2
