"""A key's own view: what it holds and may hold, its limits, and the removal of all that it has."""

from __future__ import annotations

import time

import pytest

from app.routes import generations
from clipsynth.commands.keys import _seconds
from clipsynth.schemas.generation import Status
from clipsynth.security.api_keys import create_key
from tests.support.api_service import check_problem


def headers_of(service, name="a", **limits):
    _, token = create_key(service.redis, name, ["generate", "read"], **limits)
    return {"authorization": f"Bearer {token}"}


def test_a_key_sees_what_it_holds_and_may_hold(serve):
    service = serve(max_inflight=7, rate_per_s=2, rate_burst=20)
    key = headers_of(service, rate_per_s=0.001, max_kept_bytes=100_000)
    before = service.client.get("/v1/usage", headers=key).json()
    assert (before["requests"]["left"], before["kept_bytes"]["used"]) == (1, 0)
    assert service.post(**key).status_code == 202
    usage = service.client.get("/v1/usage", headers=key).json()
    assert usage["requests"] == {"left": 0, "burst": 1, "per_s": 0.001}
    assert usage["unfinished"] == {"used": 1, "limit": 7}
    assert (usage["generations"], usage["kept_bytes"]["limit"], usage["name"]) == (1, 100_000, "a")
    assert 1000 < usage["kept_bytes"]["used"] < 5000
    assert usage["streams"] == {"used": 0, "limit": 100}
    check_problem(service.client.get("/v1/usage"), 401, "unauthorized")


def test_answers_tell_how_many_requests_are_left(serve):
    service = serve(rate_per_s=1, rate_burst=2)
    answers = [service.post() for _ in range(3)]
    assert [a.headers["ratelimit-policy"] for a in answers] == ['"requests";q=2'] * 3
    left = [a.headers["ratelimit"].removeprefix('"requests";') for a in answers]
    assert left == ["r=1;t=1", "r=0;t=2", "r=0;t=2"]
    check_problem(answers[2], 429, "rate_limited")
    assert "ratelimit" not in service.client.get("/v1/models").headers
    assert "ratelimit" not in serve(rate_per_s=0).post().headers


def test_a_key_has_its_own_limits(serve):
    service = serve(rate_per_s=0, rate_burst=3)
    slow = headers_of(service, rate_per_s=0.001)
    small = headers_of(service, max_kept_bytes=1)
    free = headers_of(service)
    assert service.post(**free).status_code == service.post(**small).status_code == 202
    check_problem(service.post(**small), 429, "kept_quota")
    while (answer := service.post(**slow)).status_code == 202:
        pass
    check_problem(answer, 429, "rate_limited")
    assert service.post(**free).status_code == 202


def test_a_key_expires(serve, monkeypatch):
    service = serve()
    key = headers_of(service, expires_at=time.time() + 3600)
    assert service.client.get("/v1/models", headers=key).status_code == 200
    later = time.time() + 3601
    monkeypatch.setattr(time, "time", lambda: later)
    check_problem(service.client.get("/v1/models", headers=key), 401, "unauthorized")


@pytest.mark.parametrize(("text", "seconds"), [("90d", 7_776_000), ("12h", 43_200), ("30m", 1800)])
def test_the_end_of_a_key_is_a_duration(text, seconds):
    assert _seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "d", "0d", "-1d", "1.5h", "90", "1y", "²d"])
def test_other_ends_of_a_key_are_refused(text):
    with pytest.raises(ValueError, match="--expires"):
        _seconds(text)


def test_a_generation_is_kept_as_long_as_requested(serve):
    service = serve(result_ttl_s=100)
    made = [
        service.client.post("/v1/generations", json={"prompt": "a dog"} | body).headers["location"]
        for body in ({}, {"ttl_s": 7})
    ]
    for location in made:
        service.state.transition(location.rpartition("/")[2], Status.FAILED)
    kept = [service.client.get(location).json() for location in made]
    assert [round(g["expires_at"] - g["finished_at"], 3) for g in kept] == [100, 7]
    indexed = [service.redis.zscore("clipsynth:expiry", g["id"]) for g in kept]
    assert indexed == pytest.approx([g["expires_at"] for g in kept])
    for ttl_s in (0, 101, 1.5, "7"):
        refused = service.client.post("/v1/generations", json={"prompt": "a dog", "ttl_s": ttl_s})
        check_problem(refused, 422, "invalid_request")
        assert "ttl_s" in refused.text


def test_all_generations_of_a_key_are_removed(serve):
    service = serve()
    one, other = headers_of(service), headers_of(service, "b")
    made = [service.post(**one).headers["location"] for _ in range(4)]
    kept = service.post(**other).headers["location"]
    service.state.start(made[0].rpartition("/")[2], batched_with_others=False)
    service.state.transition(made[1].rpartition("/")[2], Status.FAILED)
    service.client.post(f"{made[2]}/cancel", headers=one)
    service.redis.set(f"clipsynth:gen:{made[2].rpartition('/')[2]}", "damaged")
    removed = service.client.delete("/v1/generations", headers=one)
    assert (removed.status_code, removed.json()) == (200, {"deleted": 4})
    assert service.client.get("/v1/generations", headers=one).json()["data"] == []
    assert service.client.get(made[3], headers=one).status_code == 410
    assert service.client.get(kept, headers=other).status_code == 200
    usage = service.client.get("/v1/usage", headers=one).json()
    assert (usage["unfinished"]["used"], usage["generations"]) == (0, 0)
    due = set(service.state.expired())
    assert due == {location.rpartition("/")[2] for location in made[1:]}


def test_a_removal_of_many_says_that_some_are_left(serve, monkeypatch):
    monkeypatch.setattr(generations, "DELETE_S", -1)
    service = serve()
    service.post()
    removed = service.client.delete("/v1/generations")
    assert (removed.status_code, removed.json()) == (202, {"deleted": 0})
