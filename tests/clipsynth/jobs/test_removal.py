"""Removal of generations: little is left of them, and it also works while Redis is full."""

from __future__ import annotations

import threading
from contextlib import contextmanager

import pytest
from redis.exceptions import OutOfMemoryError

from clipsynth import budgets
from clipsynth.jobs import removal
from clipsynth.redis_keys import KEPT
from clipsynth.schemas.generation import Status
from clipsynth.services import janitor
from clipsynth.services.janitor import expire, sweep
from clipsynth.settings import Settings
from clipsynth.storage import Storage
from tests.support.api_service import check_problem

LONG = {"prompts": [{"text": f"a{n}" * 500} for n in range(8)], "deadline_s": 3600.0}


@contextmanager
def full(redis):
    """Refuse every command that needs memory."""
    redis.config_set("maxmemory", 1)
    try:
        with pytest.raises(OutOfMemoryError):
            redis.set("more", 1)
        yield
    finally:
        redis.config_set("maxmemory", 0)


def post(service, **body):
    headers = {"idempotency-key": str(body)[:200]}
    made = service.client.post("/v1/generations", json={"prompt": "a dog"} | body, headers=headers)
    assert made.status_code == 202, made.text
    return made.headers["location"]


def test_a_full_redis_still_cancels_and_deletes(serve):
    service = serve()
    queued, deleted, running = (post(service, seed=n) for n in range(3))
    service.state.start(running.rpartition("/")[2], batched_with_others=False)
    with full(service.redis):
        assert service.client.post(f"{queued}/cancel").json()["status"] == "canceled"
        assert service.client.post(f"{running}/cancel").status_code == 202
        assert service.client.delete(deleted).status_code == 204
        assert service.client.delete(queued).status_code == 204
        check_problem(service.client.get(deleted), 410, "gone")
        assert service.state.transition(running.rpartition("/")[2], Status.SUCCEEDED) is False
        assert service.client.get(running).json()["status"] == "canceled"


def test_the_janitor_makes_room_in_a_full_redis(serve):
    service = serve()
    late, old = post(service, deadline_s=0.001), post(service)
    service.client.post(f"{old}/cancel")
    service.state.postpone(old.rpartition("/")[2], -1)
    with full(service.redis):
        assert expire(service.state) == 1
        assert sweep(service.state, service.storage) == 1
        check_problem(service.client.get(old), 410, "gone")
        service.state.forget(late.rpartition("/")[2])
        service.state.files_removed(late.rpartition("/")[2])
    assert not service.redis.exists(KEPT, "clipsynth:expiry", "clipsynth:deadlines")


@pytest.mark.parametrize("status", [Status.CANCELED, Status.EXPIRED])
def test_a_job_that_never_ran_keeps_little(serve, status):
    service = serve()
    location = post(service, **{"prompt": None} | LONG)
    generation_id = location.rpartition("/")[2]
    before = int(service.redis.hget(KEPT, "anonymous"))
    assert service.state.end_queued(generation_id, status)
    assert before > 16_000
    assert int(service.redis.hget(KEPT, "anonymous")) < 4000
    assert service.redis.memory_usage(f"clipsynth:gen:{generation_id}", samples=0) < 4000
    texts = [prompt["text"] for prompt in service.client.get(location).json()["input"]["prompts"]]
    assert texts == [f"a{n}" * 50 + "…" for n in range(8)]


def test_a_deleted_generation_leaves_a_tombstone_and_its_key(serve):
    service = serve(webhook_secret="whsec_AAAA", webhook_loopback=True)
    known = set(service.redis.scan_iter())
    location = post(service, **{"prompt": None} | LONG, webhook_url="http://127.0.0.1:1/")
    service.client.post(f"{location}/cancel")
    service.client.delete(location)
    left = {name.decode().rpartition(":")[0] for name in set(service.redis.scan_iter()) - known}
    kinds = ("tombstones", "idempotency:anonymous", "bucket", "turns", "webhooks")
    assert left <= {f"clipsynth:{kind}" for kind in kinds} | {"clipsynth", "rq"}
    [claim] = service.redis.scan_iter("clipsynth:idempotency:*")
    assert service.redis.ttl(claim) <= removal.CLAIM_TTL_S


def test_the_tombstones_of_a_key_are_bounded(serve, monkeypatch):
    monkeypatch.setattr(removal, "MAX_TOMBSTONES", 3)
    service = serve()
    locations = [post(service, seed=n) for n in range(5)]
    for location in locations:
        service.client.delete(location)
    assert [service.client.get(location).status_code for location in locations] == [404] * 2 + [410] * 3


def test_a_nearly_full_redis_takes_no_more_jobs(serve, monkeypatch):
    service = serve()
    monkeypatch.setattr(budgets, "LOOK_S", 0)
    used = service.redis.info("memory")["used_memory"]
    service.redis.config_set("maxmemory", int(used / 0.95))
    try:
        refused = service.post()
        check_problem(refused, 503, "storage_full")
        assert "retry-after" in refused.headers
        assert (
            'clipsynth_admission_rejects_total{code="storage_full"} 1.0'
            in service.client.get("/metrics").text
        )
    finally:
        service.redis.config_set("maxmemory", 0)
    assert service.post().status_code == 202


@pytest.mark.parametrize("disk", ["results", "redis"])
def test_a_nearly_full_disk_takes_no_more_jobs(serve, monkeypatch, disk):
    service, free = serve(storage_reserve_bytes=1000), [999]
    location = post(service)
    monkeypatch.setattr(budgets, "LOOK_S", 0)
    if disk == "results":
        monkeypatch.setattr(Storage, "free_bytes", lambda _: free[0])
    else:
        monkeypatch.setattr(budgets, "free_bytes", lambda _: free[0])
    check_problem(service.post(), 503, "storage_full")
    check_problem(service.client.get("/readyz"), 503, "storage_full")
    assert service.client.get(location).status_code == 200
    assert service.client.delete(location).status_code == 204
    free[0] = 1000
    assert service.post().status_code == 202


def test_the_room_of_a_disk_is_that_of_its_folder(tmp_path):
    assert Storage((tmp_path / "none" / "yet").as_uri()).free_bytes() > 0
    assert Storage("memory://results").free_bytes() is None


def test_a_key_keeps_a_bounded_number_of_bytes(serve):
    service = serve(kept_bytes_per_key=20_000)
    locations = [post(service, **{"prompt": None} | LONG)]
    while (refused := service.post()).status_code == 202:
        locations.append(refused.headers["location"])
    check_problem(refused, 429, "kept_quota")
    assert refused.headers["retry-after"] == "60"
    assert len(locations) < 10
    service.client.delete(locations[0])
    assert service.post().status_code == 202


def test_a_step_of_the_janitor_that_fails_holds_up_no_other(serve, monkeypatch, redis_url, tmp_path):
    service, stop = serve(), threading.Event()
    location = post(service)
    service.client.post(f"{location}/cancel")
    service.state.postpone(location.rpartition("/")[2], -1)
    monkeypatch.setattr(janitor, "expire", lambda _: (_ for _ in ()).throw(OutOfMemoryError()))
    monkeypatch.setattr(janitor, "expire_unserved", lambda _: stop.set() or 0)
    janitor.run(Settings(redis_url=redis_url, data_dir=tmp_path), stop)
    check_problem(service.client.get(location), 410, "gone")
