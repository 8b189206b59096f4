"""Sounds on their way to a client are counted, and so are the bytes of a list."""

from __future__ import annotations

from clipsynth.jobs import record
from clipsynth.storage import audio_key
from tests.support.api_client import queued
from tests.support.api_service import check_problem

SIZE = 300_000


def test_a_key_receives_a_bounded_number_of_bytes(serve, monkeypatch):
    monkeypatch.setattr("tests.support.api_client.SOUND", b"R" * SIZE)
    service = serve(max_download_bytes_per_key=2 * SIZE)
    location = service.post().headers["location"]
    service.work()
    downloads = service.client.app.state.services.budgets.downloads
    share = downloads.take("anonymous", SIZE + 1)
    check_problem(service.client.get(f"{location}/audio/0"), 429, "download_budget")
    part = service.client.get(f"{location}/audio/0", headers={"range": "bytes=0-99"})
    assert (part.status_code, len(part.content)) == (206, 100)
    assert service.client.get("/v1/usage").json()["download_bytes"] == {"used": SIZE + 1, "limit": 2 * SIZE}
    downloads.give(share)
    assert len(service.client.get(f"{location}/audio/0").content) == SIZE
    assert downloads.held == 0
    assert service.storage.get(audio_key(location.rpartition("/")[2], 0, "wav")) == b"R" * SIZE


def test_a_page_of_long_requests_is_short(serve, monkeypatch):
    monkeypatch.setattr(record, "MAX_BYTES", 1)
    service = serve()
    ids = [queued(service.state) for _ in range(3)]
    found, cursor = [], ""
    while cursor is not None:
        page = service.client.get(f"/v1/generations?cursor={cursor}").json()
        assert len(page["data"]) <= 1
        found += [generation["id"] for generation in page["data"]]
        cursor = page["next_cursor"]
    assert sorted(found) == sorted(ids)
