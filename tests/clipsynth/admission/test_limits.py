"""Who gets onto the queue, and what those are told who do not."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from rq import Queue

from clipsynth.admission import limits
from clipsynth.admission.limits import Admission, Reservation, load, release_stale_reservations, reserve
from clipsynth.errors import QueueFull, RateLimited
from clipsynth.jobs.store import new_id
from clipsynth.schemas.generation import Status
from clipsynth.security.api_keys import create_key
from clipsynth.settings import Settings
from tests.support.admission import COST, REQUEST_S
from tests.support.api_client import INFO
from tests.support.api_service import check_problem, image


def admit(redis, reservation, settings):
    return reserve(redis, Admission(reservation, settings, COST, 1))


def end(service, generation_id, status=Status.SUCCEEDED):
    assert service.state.transition(generation_id, status)


def test_by_default_a_single_user_is_not_limited(serve):
    service = serve()
    assert {service.post().status_code for _ in range(100)} == {202}


def test_a_full_queue_rejects(serve):
    service = serve(max_queued=2, allow_anonymous=True)
    _, token = create_key(service.redis, "other", ["generate"])
    assert [service.post().status_code, service.post(authorization=f"Bearer {token}").status_code] == [
        202
    ] * 2
    refused = service.post()
    check_problem(refused, 429, "queue_full")
    assert refused.headers["retry-after"] == "5"


def test_a_post_returns_the_same_as_a_get(serve):
    service = serve()
    answers = [service.post() for _ in range(2)]
    assert [answer.json()["queue_position"] for answer in answers] == [0, 1]
    for answer in answers:
        assert service.client.get(answer.headers["location"]).json() == answer.json()


@pytest.mark.parametrize("how", ["ended", "canceled", "deleted"])
def test_a_finished_job_makes_room(serve, how):
    service = serve(max_inflight=2)
    first, _ = service.post(), service.post()
    check_problem(service.post(), 429, "rate_limited")
    location = first.headers["location"]
    if how == "ended":
        end(service, first.json()["id"])
    elif how == "canceled":
        service.client.post(f"{location}/cancel")
    assert service.client.delete(location).status_code == 204
    assert service.post().status_code == 202
    check_problem(service.post(), 429, "rate_limited")


def test_when_all_jobs_have_ended_the_load_is_zero(serve):
    service = serve()
    made = [service.post().json()["id"] for _ in range(6)]
    for generation_id, status in zip(
        made[:4], [Status.SUCCEEDED, Status.FAILED, Status.CANCELED, Status.EXPIRED], strict=True
    ):
        end(service, generation_id, status)
        assert not service.state.transition(generation_id, Status.FAILED)
    service.state.start(made[4], batched_with_others=False)
    for generation_id in made:
        service.state.forget(generation_id)
        service.state.forget(generation_id)
    assert load(service.redis, "tiny") == (0, 0)
    assert not service.redis.keys("clipsynth:load:*")
    assert not service.redis.exists("clipsynth:inflight", "clipsynth:holds")


def test_the_backlog_is_limited_in_seconds(serve):
    service = serve(max_backlog_s=4 * REQUEST_S + 0.1)
    service.state.announce(INFO.model_copy(update={"cost": COST}))
    assert [service.post().status_code for _ in range(2)] == [202] * 2
    refused = service.post()  # one owner fills half of it
    check_problem(refused, 429, "queue_full")
    assert int(refused.headers["retry-after"]) == 2  # one of its own takes 1.2 s


def test_a_request_above_the_limit_runs_in_an_empty_queue(serve):
    service = serve(max_backlog_s=0.1)
    service.state.announce(INFO.model_copy(update={"cost": COST}))
    assert [service.post().status_code for _ in range(2)] == [202, 429]


def test_one_key_does_not_fill_the_queue_for_others(serve):
    service = serve(max_queued=12, allow_anonymous=True)
    owners = [
        {"authorization": f"Bearer {create_key(service.redis, name, ['generate'])[1]}"} for name in "abc"
    ]
    accepted = [
        sum(service.post(**owner).status_code == 202 for _ in range(14)) for owner in (*owners, owners[0])
    ]
    assert accepted == [6, 4, 2, 0]
    check_problem(service.post(), 429, "queue_full")


def test_a_key_is_rate_limited(serve):
    service = serve(rate_per_s=0.001, rate_burst=3)
    assert [service.post().status_code for _ in range(4)] == [202, 202, 202, 429]
    refused = service.post()
    check_problem(refused, 429, "rate_limited")
    assert 900 < int(refused.headers["retry-after"]) <= 1000
    _, token = create_key(service.redis, "other", ["generate"])
    assert service.post(authorization=f"Bearer {token}").status_code == 202
    assert service.client.get("/v1/models", headers={"authorization": f"Bearer {token}"}).status_code == 403


def test_rejections_take_no_tokens_and_no_room(serve):
    service = serve(max_inflight=1, rate_per_s=0.001, rate_burst=2)
    made = service.post()
    for _ in range(5):
        check_problem(service.post(), 429, "rate_limited")
    end(service, made.json()["id"])
    assert service.post().status_code == 202
    assert load(service.redis, "tiny")[0] == 1


def test_a_request_that_fails_to_queue_returns_its_room(serve, monkeypatch):
    service = serve()
    with monkeypatch.context() as patch:
        patch.setattr(Queue, "push_job_id", lambda *_, **__: 1 / 0)
        assert service.post().status_code == 500
    assert service.client.post("/v1/generations", files={"image": ("x", b"none")}).status_code == 415
    assert load(service.redis, "tiny")[0] == 0


def test_a_stale_reservation_is_released(serve, monkeypatch):
    service = serve()
    assert admit(service.redis, Reservation(new_id(), "anonymous", "tiny", 8.0), Settings())
    assert (release_stale_reservations(service.redis), load(service.redis, "tiny")) == (0, (1, 8.0))
    monkeypatch.setattr(limits, "RESERVATION_S", -1)
    assert (release_stale_reservations(service.redis), load(service.redis, "tiny")) == (1, (0, 0.0))


def test_an_id_is_admitted_only_once(serve):
    service = serve()
    hold = Reservation(new_id(), "anonymous", "tiny", 8.0)
    assert [admit(service.redis, hold, Settings()) for _ in range(2)] == [True, False]
    assert load(service.redis, "tiny") == (1, 8.0)


def test_the_limit_holds_for_concurrent_requests(serve):
    service = serve()
    settings = Settings(max_queued=20)

    def ask(_):
        try:
            return admit(service.redis, Reservation(new_id(), "anonymous", "tiny", 1.0), settings)
        except (QueueFull, RateLimited):
            return False

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(ask, range(60))) == 10  # half of it: there is room for one more owner


def test_an_idempotency_key_makes_one_generation_of_many_at_once(serve):
    service = serve()
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: service.post(**{"idempotency-key": "k"}), range(8)))
    assert {r.status_code for r in made} == {202}
    assert len({r.json()["id"] for r in made}) == 1
    assert load(service.redis, "tiny")[0] == 1


def test_a_rejected_request_may_reuse_its_idempotency_key(serve):
    service = serve(max_inflight=1)
    first = service.post()
    refused = service.post(**{"idempotency-key": "k"})
    check_problem(refused, 429, "rate_limited")
    end(service, first.json()["id"])
    again = service.post(**{"idempotency-key": "k"})
    assert (again.status_code, "idempotent-replayed" in again.headers) == (202, False)


def test_an_unreachable_deadline_is_rejected(serve):
    service = serve()
    service.state.announce(INFO.model_copy(update={"cost": COST}))

    def ask(deadline_s):
        return service.client.post("/v1/generations", json={"prompt": "a", "deadline_s": deadline_s})

    check_problem(ask(1), 422, "deadline_unreachable")
    assert ask(2).status_code == 202
    check_problem(ask(2), 422, "deadline_unreachable")


def test_rejections_are_counted_by_code(serve):
    service = serve(max_inflight=1)
    service.state.announce(INFO.model_copy(update={"cost": COST}))
    service.client.post("/v1/generations", files={"image": ("x", image("PNG"))})
    service.post()
    service.client.post("/v1/generations", json={"prompt": 1})
    text = service.client.get("/metrics").text
    assert 'clipsynth_problems_total{code="rate_limited"} 1.0' in text
    assert 'clipsynth_problems_total{code="invalid_request"} 1.0' in text
    assert 'clipsynth_unfinished{model="tiny"} 1.0' in text
    assert f'clipsynth_backlog_seconds{{model="tiny"}} {REQUEST_S:.1f}' in text
