"""Payloads, records, replay tokens and fingerprints that an older version stored."""

from __future__ import annotations

import json
import secrets
from pathlib import Path

import pytest

from clipsynth.redis_keys import IDEMPOTENCY, RECORD
from clipsynth.schemas.generation import JobPayload, Output, ReplayToken
from clipsynth.schemas.model_info import ModelCost
from tests.support.api_client import INFO

SAVED = json.loads(Path(__file__).with_name("saved_generations.json").read_text())
each_saved = pytest.mark.parametrize("saved", SAVED, ids=["text", "set", "retrieval"])


@pytest.fixture
def service(serve):
    service = serve(webhook_secret="whsec_" + "A" * 32)
    cost = ModelCost(audio_step_s=0.1, step_s=0.01, guided_share=0.5)
    offered = {"attributes": ["loudness", "pitch"], "methods": ["diffusion", "retrieval"], "cost": cost}
    service.state.announce(INFO.model_copy(update=offered))
    return service


@each_saved
def test_a_saved_payload_is_byte_equal(saved):
    stored = saved["queued_record"]["input"]
    assert JobPayload.model_validate_json(stored).model_dump_json() == stored


@each_saved
def test_a_saved_replay_token_is_byte_equal(saved):
    recipe = ReplayToken.read(saved["token"])
    assert (recipe.token(), recipe.id) == (saved["token"], saved["token_id"])


@each_saved
def test_a_saved_record_is_read(service, saved):
    service.redis.hset(RECORD + saved["id"], mapping=saved["record"])
    expected = json.loads(json.dumps(saved["resource"]).replace('"novelty"', '"copy_distance"'))
    added = {"familiarity": None, "understood_as": [], "warnings": []}
    assert service.client.get(f"/v1/generations/{saved['id']}").json() == expected | added
    assert expected["outputs"][0]["copy_distance"] == 0.25


@each_saved
def test_a_new_record_equals_a_saved_one(service, saved, monkeypatch):
    monkeypatch.setattr(secrets, "randbelow", lambda _: 1234567)
    posted = service.client.post("/v1/generations", json=saved["body"], headers={"Idempotency-Key": "key"})
    record = service.redis.hgetall(RECORD + posted.json()["id"])
    record = {name.decode(): value.decode() for name, value in record.items()}
    times = dict.fromkeys(("created_at", "deadline_at", "turn"))
    # Later versions add fields; none is missing or changed.
    old = {name: record[name] for name in saved["queued_record"]}
    assert old | times == saved["queued_record"] | times
    assert record.keys() - old.keys() == {"kept", "claim"}
    [key] = service.redis.keys(f"{IDEMPOTENCY}anonymous:*")
    assert service.redis.get(key).decode().split()[0] == saved["fingerprint"]


@each_saved
def test_a_saved_idempotency_key_finds_its_generation(service, saved):
    posted = service.client.post("/v1/generations", json=saved["body"], headers={"Idempotency-Key": "key"})
    [key] = service.redis.keys(f"{IDEMPOTENCY}anonymous:*")
    service.redis.set(key, f"{saved['fingerprint']} {saved['id']}")
    service.redis.hset(RECORD + saved["id"], mapping=saved["record"])
    again = service.client.post("/v1/generations", json=saved["body"], headers={"Idempotency-Key": "key"})
    assert (posted.status_code, again.json()["id"]) == (202, saved["id"])


def test_the_new_name_of_a_field_is_written():
    [output] = json.loads(SAVED[0]["record"]["outputs"])
    written = Output.model_validate(output).model_dump()
    assert written["copy_distance"] == 0.25
    assert "novelty" not in written
