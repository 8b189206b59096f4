"""Idempotency keys: a key is bound together with a place in the queue."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from app.requests import submit
from clipsynth.jobs.store import JobStore
from tests.support.api_client import INFO
from tests.support.api_service import check_problem

KEY = {"idempotency-key": "order 66"}
REFUSED = {
    "queue": {"prompt": "a dog"},
    "rate": {"prompt": "a dog"},
    "image": {"image": "AAAA"},
    "model": {"prompt": "a dog", "model": "none"},
    "duration": {"prompt": "a dog", "duration_s": 9},
}


def bound(service):
    return list(service.redis.scan_iter("clipsynth:idempotency:*"))


def post(service, **body):
    return service.client.post("/v1/generations", json={"prompt": "a dog"} | body, headers=KEY)


@pytest.mark.parametrize("why", REFUSED)
def test_a_refused_request_binds_no_key(serve, why):
    service = serve(max_inflight=1 if why == "queue" else 0, rate_burst=1, rate_per_s=0.001)
    if why in ("queue", "rate"):
        service.post()
    refused = service.client.post("/v1/generations", json=REFUSED[why], headers=KEY)
    assert refused.status_code in (415, 422, 429), refused.text
    assert not bound(service)
    service.redis.flushdb()
    service.state.announce(INFO)
    assert post(service, seed=1).status_code == 202
    assert len(bound(service)) == 1


def test_concurrent_requests_with_a_key_are_one(serve):
    service = serve()
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: post(service), range(8)))
    assert {a.status_code for a in answers} <= {202, 409}
    assert len({a.json()["id"] for a in answers if a.status_code == 202}) == 1
    assert service.redis.zcard("clipsynth:gens:anonymous") == 1
    check_problem(post(service, seed=1), 422, "idempotency_mismatch")


def test_few_requests_wait_for_the_first_with_a_key(serve, monkeypatch):
    """The first one has its place, and its record does not come."""
    service = serve()
    monkeypatch.setattr(submit, "_WAITING", threading.BoundedSemaphore(1))
    first = post(service)
    service.redis.rename(f"clipsynth:gen:{first.json()['id']}", "away")
    waits, goes_on = threading.Event(), threading.Event()

    def exists(*_):
        waits.set()
        return goes_on.is_set()

    monkeypatch.setattr(JobStore, "exists", exists)
    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(post, service)
        assert waits.wait(10)
        check_problem(post(service), 409, "not_ready")
        service.redis.rename("away", f"clipsynth:gen:{first.json()['id']}")
        goes_on.set()
        assert second.result().json()["id"] == first.json()["id"]
