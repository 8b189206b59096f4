"""How often a request asks Redis."""

from __future__ import annotations

from math import isfinite

import pytest
from redis.connection import AbstractConnection

from app import dependencies
from clipsynth.jobs import model_registry
from clipsynth.schemas.model_info import ModelSound
from clipsynth.security.api_keys import create_key, revoke_key
from clipsynth.services.processes import wait_until
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


def test_requests_ask_redis_once(service, count, monkeypatch):
    """The first of each kind makes connections, loads scripts, and reads models and keys."""
    monkeypatch.setattr(model_registry, "FRESH_S", 100)
    monkeypatch.setattr(dependencies, "KEYS_FRESH_S", 100)
    service.client.get(service.post().headers["location"])
    count()
    location = service.post().headers["location"]
    assert count() == 1
    queued = service.client.get(location).json()
    assert count() == 1
    assert (queued["queue_position"], queued["eta_s"] > 0) == (1, True)
    for _ in range(2):
        service.work()
    count()
    assert service.client.get(location).json()["status"] == "succeeded"
    assert count() == 1


def test_a_redis_without_scripts_loses_no_command(service):
    posted = [service.post()]
    service.redis.script_flush()
    posted.append(service.post())
    assert [answer.status_code for answer in posted] == [202, 202]
    now = [service.client.get(answer.headers["location"]).json() for answer in posted]
    assert [generation["queue_position"] for generation in now] == [0, 1]


def test_a_revoked_key_is_forgotten_at_once(service, monkeypatch):
    monkeypatch.setattr(dependencies, "KEYS_FRESH_S", 100)
    assert wait_until(lambda: isfinite(service.client.app.state.services.events._listens_since), timeout_s=10)
    assert service.post().status_code == 202
    key, token = create_key(service.redis, "a", ["generate"])
    assert wait_until(lambda: service.post().status_code == 401, timeout_s=10)
    headers = {"authorization": f"Bearer {token}"}
    assert [service.post(**headers).status_code for _ in range(2)] == [202, 202]
    assert service.post(authorization=f"Bearer {token}x").status_code == 401
    revoke_key(service.redis, key.id)
    assert wait_until(lambda: service.post(**headers).status_code == 401, timeout_s=10)
