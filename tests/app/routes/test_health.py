"""Probes: `/readyz` is 200 while a job can be taken, `/livez` and `/healthz` while the process lives."""

from __future__ import annotations

import pytest

from clipsynth.redis_keys import ALIVE, MODELS, SEEN, STARTING
from clipsynth.services.embedded_redis import EmbeddedRedis
from clipsynth.settings import Settings
from tests.support.api_client import INFO, Service
from tests.support.api_service import check_problem


@pytest.fixture
def service(tmp_path):
    server = EmbeddedRedis(tmp_path)
    service = Service(Settings(redis_url=server.url, data_dir=tmp_path))
    with service.client:
        yield service
    service.redis.close()
    server.stop()


def check_alive(service):
    assert [service.client.get(path).status_code for path in ("/livez", "/healthz")] == [200, 200]


def test_a_service_is_ready_from_the_first_worker_on(service):
    service.redis.delete(MODELS, SEEN, ALIVE + "tiny")
    check_problem(service.client.get("/readyz"), 503, "no_worker")
    check_alive(service)
    service.state.announce_starting(INFO)
    assert service.client.get("/readyz").status_code == 200
    service.redis.delete(STARTING + "tiny")  # it ended before it had loaded
    check_problem(service.client.get("/readyz"), 503, "no_worker")


def test_a_service_stays_ready_while_workers_are_replaced(service):
    service.redis.delete(ALIVE + "tiny")
    assert service.client.get("/readyz").status_code == 200
    assert service.post().status_code == 202


@pytest.mark.parametrize("fault", ["full", "replica", "too few replicas"])
def test_a_redis_that_refuses_writes_is_not_ready(service, fault):
    name, bad, good = {
        "full": ("maxmemory", "1", "0"),
        "replica": ("replicaof", "127.0.0.1 1", "no one"),
        "too few replicas": ("min-replicas-to-write", "1", "0"),
    }[fault]

    def configure(value):
        if name == "replicaof":
            service.redis.replicaof(*value.split())
        else:
            service.redis.config_set(name, value)

    assert service.client.get("/readyz").status_code == 200
    configure(bad)
    check_problem(service.client.get("/readyz"), 503, "redis_unavailable")
    check_problem(service.post(), 503, "redis_unavailable")
    check_alive(service)
    configure(good)
    assert service.client.get("/readyz").status_code == 200
    assert service.post().status_code == 202
