"""Budgets of what requests share, over processes and keys."""

from __future__ import annotations

import asyncio
import time

import pytest
from redis import Redis

from clipsynth import budgets
from clipsynth.budgets import Budget, Slots
from clipsynth.errors import RateLimited


@pytest.fixture
def redis(redis_url):
    with Redis.from_url(redis_url) as client:
        client.flushall()
        yield client


def budget(redis, **options):
    options = {"per_process": 100, "per_key": 50} | options
    return Budget(redis, "test", lambda who: RateLimited(who, retry_after_s=1), **options)


def test_a_key_and_the_process_hold_at_most_their_budget(redis):
    own = budget(redis)
    shares = [own.take(key, 50) for key in "ab"]
    with pytest.raises(RateLimited, match="this API key"):
        own.take("a", 1)
    with pytest.raises(RateLimited, match="this process"):
        own.take("c", 1)
    assert own.refused == {"key": 1, "process": 1}
    own.give(shares[0])
    own.take("a", 50)
    assert own.held == 100


def test_the_shares_of_a_key_count_over_all_processes(redis):
    one, two = budget(redis), budget(redis)
    share = one.take("a", 30)
    with pytest.raises(RateLimited, match="this API key"):
        two.take("a", 30)
    assert (two.held, two.used("a")) == (0, 30)
    one.give(share)
    two.take("a", 30)


def test_small_shares_ask_redis_nothing(redis):
    own = budget(redis, uncounted=10)
    own.redis = None
    own.give(own.take("a", 10))
    assert own.held == 0


def test_the_shares_of_a_killed_process_expire(redis, monkeypatch):
    killed, alive = budget(redis), budget(redis)
    killed.take("a", 50)
    alive.take("b", 50)
    now = time.time()
    monkeypatch.setattr(budgets.time, "time", lambda: now + budgets.SHARE_TTL_S - 1)
    alive.renew()
    monkeypatch.setattr(budgets.time, "time", lambda: now + budgets.SHARE_TTL_S + 1)
    assert (alive.used("a"), alive.used("b")) == (0, 50)
    alive.take("a", 50)


def test_keys_take_slots_in_turns():
    served = []

    async def use(slots, owner, goes_on):
        async with slots.hold(owner):
            served.append(owner)
            await goes_on.wait()

    async def run():
        slots, goes_on = Slots("test", 1), asyncio.Event()
        tasks = [asyncio.create_task(use(slots, owner, goes_on)) for owner in "aaaab"]
        await asyncio.sleep(0)
        tasks[1].cancel()
        goes_on.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert slots.free == 1

    asyncio.run(run())
    assert served == ["a", "a", "b", "a"]


def test_few_requests_of_a_key_wait_for_a_slot():
    async def run():
        slots = Slots("test", 2, per_key=1)
        async with slots.hold("a"):
            with pytest.raises(RateLimited):
                async with slots.hold("a", max_waiting=0):
                    pass
            async with slots.hold("b", max_waiting=0):
                pass
        assert (slots.held, slots.refused) == (0, {"key": 1})

    asyncio.run(run())
