"""Records that cannot be read: the others stay readable."""

from __future__ import annotations

import pytest

from clipsynth.redis_keys import MODEL, MODELS, RECORD
from clipsynth.settings import Settings
from tests.support.api_service import SHORT, check_problem, serving


@pytest.fixture
def service(redis_url, tiny_pipeline, tmp_path):
    yield from serving(Settings(redis_url=redis_url, data_dir=tmp_path), tiny_pipeline)


@pytest.mark.parametrize("damage", ["", '{"prompt": 1}', '{"v": 1', b"\xff", None])
def test_one_unreadable_record_does_not_break_a_list(service, damage):
    first, second, third = (service.post({"prompt": "a", **SHORT}).json()["id"] for _ in range(3))
    service.redis.hset(RECORD + second, "input", damage) if damage is not None else service.redis.hdel(
        RECORD + second, "created_at"
    )
    page = service.client.get("/v1/generations").json()
    assert [g["id"] for g in page["data"]] == [third, first]
    check_problem(service.client.get(f"/v1/generations/{second}"), 500, "record_unreadable")
    service.redis.hset(RECORD + third, "understood", "[")
    check_problem(service.client.get(f"/v1/generations/{third}"), 500, "record_unreadable")
    service.redis.hdel(RECORD + third, "understood")
    service.redis.delete(RECORD + first)
    service.redis.set(RECORD + first, "a key of another type")
    assert [g["id"] for g in service.client.get("/v1/generations").json()["data"]] == [third]


def test_one_unreadable_model_does_not_break_the_others(service):
    service.redis.sadd(MODELS, "odd")
    service.redis.set(MODEL + "odd", '{"name": "odd"}')
    assert [m["name"] for m in service.client.get("/v1/models").json()] == ["tiny"]
    assert service.post({"prompt": "a", **SHORT}).status_code == 202
