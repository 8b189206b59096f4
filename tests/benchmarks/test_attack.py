"""The attackers of the benchmark, for a moment, against the API as it is served."""

from __future__ import annotations

import asyncio

import pytest
from redis import Redis

from benchmarks.attack import attackers
from benchmarks.attack.attackers import ATTACKS, attack
from benchmarks.attack.wire import Target
from clipsynth.security.api_keys import create_key
from tests.support.api_server import api_server


@pytest.mark.parametrize("kinds", [["plain", "names", "records"]])
def test_attackers_are_answered_and_so_is_a_probe(redis_url, tmp_path, monkeypatch, kinds):
    monkeypatch.setattr(attackers, "GRACE_S", 60)
    with api_server(redis_url, tmp_path, allow_anonymous=False) as port, Redis.from_url(redis_url) as redis:
        _, token = create_key(redis, "greedy", ["generate", "read"])
        said = asyncio.run(attack(port, token, 0.5, 0.0, kinds))
        assert said["sent"] > 0
        assert "202" in said["statuses"]
        assert asyncio.run(Target(port, "").ask("GET", "/healthz"))[0] == 200


def test_every_attack_has_a_finding():
    names = [attacker.__doc__.partition(":")[0] for name, attacker in ATTACKS.items() if name != "plain"]
    assert names == ["R1", "R2", "R3", "R4", "R6", "R7", "R8"]
