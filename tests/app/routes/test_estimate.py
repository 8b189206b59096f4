"""`/v1/estimate`."""

from __future__ import annotations

import pytest

from clipsynth.schemas.generation import Status
from clipsynth.security.api_keys import create_key
from tests.support.admission import COST, REQUEST_S
from tests.support.api_client import INFO
from tests.support.api_service import check_problem, image


@pytest.fixture
def service(serve):
    return serve()


def ask(service, body=None, **kwargs):
    return service.client.post("/v1/estimate", **({"json": body} if body is not None else {}), **kwargs)


def test_an_estimate_counts_the_jobs_before(service):
    service.state.announce(INFO.model_copy(update={"cost": COST}))
    empty = ask(service, {"prompt": "a"}).json()
    cost = {"model": "tiny", "unfinished": 0, "p50_s": REQUEST_S, "p90_s": pytest.approx(1.8)}
    assert empty == cost | {"familiarity": None, "understood_as": [], "prompts": None, "warnings": []}
    service.post()
    after_one = ask(service, {"prompt": "a", "num_outputs": 2}).json()
    assert (after_one["unfinished"], after_one["p50_s"]) == (1, pytest.approx(3 * REQUEST_S))
    assert len(service.client.get("/v1/generations").json()["data"]) == 1


@pytest.mark.parametrize(
    ("body", "passes"),
    [
        ({"guidance_scale": 10}, 1),
        ({"guidance_scale": 10.5}, 1.5),
        ({"guidance_scale": 1}, 1),
        ({"guidance_scale": 8, "negative_prompt": "b"}, 1.5),
        ({"guidance_scale": 8, "composition": "mix"}, 1),
    ],
)
def test_distilled_guidance_costs_nothing(service, body, passes):
    cost = COST.model_copy(update={"distilled_guidance_range": [1.0, 10.0]})
    service.state.announce(INFO.model_copy(update={"cost": cost}))
    assert ask(service, {"prompt": "a", **body}).json()["p50_s"] == pytest.approx(REQUEST_S * passes / 1.5)


@pytest.mark.parametrize(("composition", "passes"), [("set", 1.5), ("compose", 3.5), ("mix", 4.5)])
def test_an_estimate_counts_the_composition(service, composition, passes):
    service.state.announce(INFO.model_copy(update={"cost": COST}))  # half of the steps are guided
    body = {
        "prompts": [{"text": t} for t in "abc"] + [{"text": "d", "weight": -1}],
        "composition": composition,
    }
    costs_s = pytest.approx(REQUEST_S * passes / 1.5)
    assert ask(service, body).json()["p50_s"] == costs_s
    made = service.client.post("/v1/generations", json=body)
    assert made.json()["eta_s"] == costs_s
    assert ask(service, {"prompt": "a"}).json()["p50_s"] == pytest.approx(REQUEST_S * (passes / 1.5 + 1))
    assert service.client.get(made.headers["location"]).json()["eta_s"] == costs_s
    assert float(service.redis.hget("clipsynth:load:tiny", "w")) == pytest.approx(4 * 2 * passes)
    assert float(service.redis.hget("clipsynth:turns:tiny", "anonymous")) == pytest.approx(4 * 2 * passes)


def test_an_estimate_learns_from_finished_jobs(service):
    service.state.announce(INFO.model_copy(update={"cost": COST}))
    for n in range(20):
        generation_id = service.post().json()["id"]
        told = float(service.redis.hget(f"clipsynth:gen:{generation_id}", "eta_s"))
        took = told * (2 if n < 15 else 5)
        made = float(service.redis.hget(f"clipsynth:gen:{generation_id}", "created_at"))
        service.redis.hset(f"clipsynth:gen:{generation_id}", "created_at", made - took)
        service.state.transition(generation_id, Status.SUCCEEDED)
    learnt = ask(service, {"prompt": "a"}).json()
    assert learnt["p50_s"] == pytest.approx(2 * REQUEST_S, rel=0.3)
    assert learnt["p90_s"] == pytest.approx(5 * REQUEST_S, rel=0.3)


def test_without_a_measured_cost_there_is_no_estimate(service):
    assert ask(service, {"prompt": "a"}).json()["p50_s"] is None


def test_an_estimate_takes_the_bodies_of_a_generation(service):
    assert ask(service, files={"image": ("x", image("PNG"))}).status_code == 200
    check_problem(ask(service, {"prompt": ""}), 422, "invalid_request")
    check_problem(ask(service, {"prompt": "a", "duration_s": 9}), 422, "too_long")
    check_problem(ask(service, {"prompt": "a", "model": "other"}), 422, "model_not_found")


def test_a_post_and_the_next_get_estimate_the_same(serve):
    service = serve(allow_anonymous=True)
    service.state.announce(INFO.model_copy(update={"cost": COST}))
    other = {"authorization": f"Bearer {create_key(service.redis, 'other', ['generate', 'read'])[1]}"}
    posts = []
    for n in range(12):
        headers = other if n % 3 == 2 else {}
        posted = service.post(**headers)
        read = service.client.get(posted.headers["location"], headers=headers).json()
        assert posted.json()["eta_s"] == pytest.approx(read["eta_s"])
        posts.append(posted)
    first = service.client.get(posts[0].headers["location"]).json()
    assert first["eta_s"] < posts[-1].json()["eta_s"] / 2  # later jobs do not delay it


def test_polling_a_queued_job_costs_few_redis_commands(service):
    service.state.announce(INFO.model_copy(update={"cost": COST}))

    def commands():
        posted = service.post()
        started = service.redis.info("stats")["total_commands_processed"]
        assert service.client.get(posted.headers["location"]).json()["eta_s"] > 0
        return service.redis.info("stats")["total_commands_processed"] - started

    alone = commands()
    for _ in range(40):
        service.post()
    assert commands() == alone <= 20
