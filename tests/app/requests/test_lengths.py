"""How long a sound and all sounds of a request may be."""

from __future__ import annotations

import pytest

from clipsynth.schemas.model_info import ModelCost
from tests.support.api_client import INFO
from tests.support.api_service import check_problem

COST = ModelCost(audio_step_s=0.01, step_s=0.01, guided_share=0.5)
WINDOWED = INFO.model_copy(update={"window_s": 5.0, "methods": ["diffusion", "retrieval"], "cost": COST})


@pytest.fixture
def service(serve):
    service = serve(job_timeout_s=20)
    service.state.announce(WINDOWED)
    return service


def post(service, **fields):
    return service.client.post("/v1/generations", json={"prompt": "rain", **fields})


def test_a_sound_may_be_a_minute_long(service):
    made = post(service, duration_s=60, num_outputs=2)
    assert (made.status_code, made.json()["input"]["duration_s"]) == (202, 60)
    fifteen = 15 * 4.0 + 14 * 1 / 15
    assert made.json()["eta_s"] == pytest.approx(2 * 2 * 1.5 * 0.01 * (60 + 14), rel=0.01), fifteen


@pytest.mark.parametrize(
    "fields",
    [
        {"duration_s": 60.01},
        {"duration_s": 1e308},
        {"duration_s": 31, "num_outputs": 4},
        {"duration_s": 60, "num_inference_steps": 200},
        {"duration_s": 5.01, "method": "retrieval"},
    ],
)
@pytest.mark.parametrize("route", ["/v1/generations", "/v1/estimate"])
def test_too_long_a_sound_is_refused(service, route, fields):
    response = service.client.post(route, json={"prompt": "rain", **fields})
    check_problem(response, 422, "too_long")
    assert service.client.get("/v1/generations").json()["data"] == []


def test_the_longest_sound_is_a_setting(serve):
    service = serve(max_duration_s=8)
    service.state.announce(WINDOWED)
    [model] = service.client.get("/v1/models").json()
    assert (model["max_duration_s"], model["window_s"]) == (8, 5)
    assert post(service, duration_s=8).status_code == 202
    check_problem(post(service, duration_s=8.5), 422, "too_long")
    check_problem(post(service, duration_s=0.4), 422, "invalid_request")


def test_a_long_replay_is_checked_like_a_request(service):
    check_problem(post(service, duration_s=4, num_outputs=9), 422, "invalid_request")
    check_problem(post(service, duration_s=4, num_inference_steps=200, num_outputs=8), 422, "too_long")
