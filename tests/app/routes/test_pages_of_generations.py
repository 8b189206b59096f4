"""The list of generations, page by page."""

from __future__ import annotations

import pytest

from clipsynth.settings import Settings
from tests.support.api_service import SHORT, check_problem, serving


@pytest.fixture
def service(redis_url, tiny_pipeline, tmp_path):
    yield from serving(Settings(redis_url=redis_url, data_dir=tmp_path), tiny_pipeline)


def test_pages_lead_through_all_generations_the_newest_first(service):
    made = [service.post({"prompt": "a", **SHORT}).json()["id"] for _ in range(5)]
    listed, cursor = [], None
    while True:
        page = service.client.get(
            "/v1/generations", params={"limit": 2, "cursor": cursor} if cursor else {"limit": 2}
        ).json()
        listed += [g["id"] for g in page["data"]]
        service.post({"prompt": "newer ones do not move the pages", **SHORT})
        if not (cursor := page["next_cursor"]):
            break
    assert listed == made[::-1]


def test_a_page_of_a_rare_status_is_short_and_leads_on(service, monkeypatch):
    monkeypatch.setattr("clipsynth.jobs.record.PAGE", 2)
    monkeypatch.setattr("clipsynth.jobs.record.MAX_SEEN", 4)
    rare = service.post({"prompt": "a", **SHORT})
    service.client.post(rare.headers["location"] + "/cancel")
    for _ in range(5):
        service.post({"prompt": "a", **SHORT})
    first = service.client.get("/v1/generations", params={"status": "canceled"}).json()
    assert first["data"] == []
    cursor = first["next_cursor"]
    second = service.client.get("/v1/generations", params={"status": "canceled", "cursor": cursor}).json()
    assert [g["links"]["self"] for g in second["data"]] == [rare.headers["location"]]
    assert second["next_cursor"] is None


def test_a_list_can_be_of_one_status(service):
    canceled = service.post({"prompt": "a", **SHORT})
    queued = service.post({"prompt": "a", **SHORT})
    service.client.post(canceled.headers["location"] + "/cancel")
    for status, response in (("canceled", canceled), ("queued", queued)):
        page = service.client.get("/v1/generations", params={"status": status}).json()
        assert [g["id"] for g in page["data"]] == [response.json()["id"]]
    service.client.delete(canceled.headers["location"])
    assert service.client.get("/v1/generations", params={"status": "canceled"}).json()["data"] == []


@pytest.mark.parametrize(
    "query",
    ["limit=0", "limit=101", "limit=x", "status=lost", "cursor=abc", "cursor=%C3%A4", "cursor=bmFuIGE="],
)
def test_a_bad_page_is_a_problem(service, query):
    check_problem(service.client.get(f"/v1/generations?{query}"), 422, "invalid_request")
