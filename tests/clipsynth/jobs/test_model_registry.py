"""Which models accept jobs, and the end of jobs that no worker comes for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from clipsynth.commands import inspect
from clipsynth.redis_keys import ALIVE, PRECISIONS, RECORD, SEEN, STARTING, WORKERS
from clipsynth.services.janitor import expire_unserved, run
from clipsynth.services.processes import wait_until
from clipsynth.settings import Settings
from tests.support.admission import COST
from tests.support.api_client import INFO, Service

HOUR_S = 3600.0


@pytest.fixture
def service(redis_url, tmp_path):
    service = Service(Settings(redis_url=redis_url, data_dir=tmp_path, queue_timeout_s=HOUR_S))
    service.state.announce(INFO.model_copy(update={"cost": COST}))
    with service.client:
        yield service
    service.redis.close()


def lose_worker(service, *, seconds_ago=0.0):
    service.redis.delete(ALIVE + "tiny")
    service.redis.hset(SEEN, "tiny", time.time() - seconds_ago)


def test_a_model_that_lost_its_worker_accepts_jobs(service):
    lose_worker(service, seconds_ago=HOUR_S - 60)
    response = service.post()
    assert response.status_code == 202
    assert response.json()["eta_s"] is None
    queued = service.client.get(response.headers["location"]).json()
    assert (queued["queue_position"], queued["eta_s"]) == (0, None)
    estimate = service.client.post("/v1/estimate", json={"prompt": "a dog"}).json()
    assert (estimate["unfinished"], estimate["p50_s"], estimate["p90_s"]) == (1, None, None)
    service.redis.set(STARTING + "tiny", "1")
    assert service.client.get(response.headers["location"]).json()["eta_s"] > 0


def test_a_deadline_waits_for_the_worker_to_come_back(service):
    lose_worker(service)
    body = {"prompt": "a dog", "deadline_s": 0.1}
    assert service.client.post("/v1/generations", json=body).status_code == 202


def test_a_model_without_a_worker_for_long_refuses_jobs(service):
    lose_worker(service, seconds_ago=HOUR_S + 1)
    response = service.post()
    assert (response.status_code, response.json()["code"]) == (503, "no_worker")


def test_the_default_is_a_model_that_has_a_worker(service):
    service.state.announce(INFO.model_copy(update={"name": "wind"}))
    assert service.post().json()["model"] == "tiny"
    service.state.withdraw_worker("tiny", "rq:worker:one")
    assert service.post().json()["model"] == "wind"
    service.state.withdraw_worker("wind", "rq:worker:two")
    assert service.post().json()["model"] == "wind"  # it was served later


def test_a_model_keeps_its_other_workers(service):
    service.redis.sadd(WORKERS + "tiny", "rq:worker:one", "rq:worker:two")
    service.state.withdraw_worker("tiny", "rq:worker:one")
    assert service.state.model(None).status == "ready"
    service.redis.srem(WORKERS + "tiny", "rq:worker:one")
    service.state.withdraw_worker("tiny", "rq:worker:two")
    assert service.state.models()[0].status == "absent"


def test_a_job_that_no_worker_came_for_expires(service):
    old, new = (service.post().json()["id"] for _ in range(2))
    service.redis.hset(RECORD + old, "created_at", time.time() - HOUR_S - 1)
    lose_worker(service, seconds_ago=HOUR_S - 60)
    assert expire_unserved(service.state) == 0
    lose_worker(service, seconds_ago=HOUR_S + 1)
    service.redis.hset(RECORD + "gen_spoilt", "created_at", "yesterday")
    service.redis.hset("clipsynth:unfinished", "gen_spoilt", "tiny")
    assert expire_unserved(service.state) == 1
    ended = service.client.get(f"/v1/generations/{old}").json()
    assert (ended["status"], ended["error"]["code"]) == ("expired", "no_worker")
    assert service.client.get(f"/v1/generations/{new}").json()["status"] == "queued"
    assert service.redis.lrange("rq:queue:clipsynth-tiny", 0, -1) == [new.encode()]


def test_the_janitor_ends_jobs_that_no_worker_came_for(service):
    generation_id = service.post().json()["id"]
    service.redis.hset(RECORD + generation_id, "created_at", time.time() - HOUR_S - 1)
    lose_worker(service, seconds_ago=HOUR_S + 1)
    stop = threading.Event()
    janitor = threading.Thread(target=run, args=(service.client.app.state.services.settings, stop))
    janitor.start()
    try:
        ended = lambda: service.state.get(generation_id).status == "expired"  # noqa: E731
        assert wait_until(ended, timeout_s=30)
    finally:
        stop.set()
        janitor.join()


def test_a_worker_withdraws_when_it_ends_in_order(redis_url, tmp_path, monkeypatch):
    service = Service(Settings(redis_url=redis_url, data_dir=tmp_path))
    monkeypatch.setenv("CLIPSYNTH_REDIS_URL", redis_url)
    monkeypatch.setenv("CLIPSYNTH_DATA_DIR", str(tmp_path))
    worker = subprocess.Popen([sys.executable, "-m", "benchmarks.load.simulated", "0.001"])
    try:

        def is_idle():
            keys = service.redis.smembers(WORKERS + "simulated")
            return [service.redis.hget(key, "state") for key in keys] == [b"idle"]

        assert wait_until(is_idle, timeout_s=60)
        status = {info.name: info.status for info in service.state.models()}
        assert status["simulated"] == "ready"
        os.kill(worker.pid, signal.SIGTERM)
        assert worker.wait(60) == 0
        status = {info.name: info.status for info in service.state.models()}
        assert status["simulated"] == "absent"
    finally:
        worker.kill()
        worker.wait()
        service.redis.close()


def test_two_precisions_of_one_model_are_noticed(service, redis_url, tmp_path):
    settings = Settings(redis_url=redis_url, data_dir=tmp_path)
    assert service.state.precisions("tiny") == ["float32"]
    service.state.announce(INFO.model_copy(update={"precision": "bfloat16"}))
    assert service.state.precisions("tiny") == ["bfloat16", "float32"]
    with pytest.raises(inspect.Failure, match="bfloat16, float32"):
        inspect._workers(settings)
    service.redis.zadd(PRECISIONS + "tiny", {"float32": time.time() - 60})
    assert service.state.precisions("tiny") == ["bfloat16"]
    assert inspect._workers(settings) == "tiny ready, bfloat16"
