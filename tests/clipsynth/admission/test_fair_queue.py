"""The order in which jobs of several keys wait."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from redis import Redis

from clipsynth.admission.limits import Reservation, forecast
from clipsynth.jobs.queue import get_queue, withdraw
from clipsynth.jobs.store import JobStore
from clipsynth.schemas.generation import JobPayload
from clipsynth.schemas.model_info import ModelCost
from clipsynth.settings import Settings
from tests.support.api_client import INFO

SECOND = ModelCost(audio_step_s=1, step_s=0, guided_share=0)
PAYLOAD = JobPayload(
    model="tiny",
    prompt="rain",
    image_key=None,
    negative_prompt=None,
    seed=0,
    num_inference_steps=1,
    guidance_scale=1.0,
    duration_s=1.0,
    num_outputs=1,
    output_formats=["wav"],
)


class Line:
    """A queue that owners join; jobs have names such as "a3", the third of a's."""

    def __init__(self, redis_url):
        self.redis = Redis.from_url(redis_url)
        self.redis.flushall()
        self.settings = Settings(redis_url=redis_url)
        self.state = JobStore.from_settings(self.redis, self.settings)
        self.names, self.count = {}, Counter()

    def join(self, owner, work=1.0):
        self.count[owner] += 1
        generation_id = f"gen_{len(self.names):026x}"
        self.names[generation_id] = f"{owner}{self.count[owner]}"
        self.state.submit(generation_id, PAYLOAD, Reservation(generation_id, owner, "tiny", work))
        return generation_id

    @property
    def waiting(self):
        return [self.names[i] for i in get_queue("tiny", self.redis).get_job_ids()]

    def take(self):
        return self.names[self.redis.lpop("rq:queue:clipsynth-tiny").decode()]


@pytest.fixture
def line(redis_url):
    line = Line(redis_url)
    yield line
    line.redis.close()


def test_one_key_is_first_in_first_out(line):
    for work in (3, 1, 2, 5, 1):
        line.join("a", work)
    assert line.waiting == ["a1", "a2", "a3", "a4", "a5"]


def test_a_late_key_waits_for_one_job_of_a_backlog(line):
    for _ in range(50):
        line.join("a")
    line.join("b")
    line.join("b")
    assert line.waiting[:5] == ["a1", "b1", "a2", "b2", "a3"]
    assert sorted(line.waiting) == sorted(line.names.values())


def test_turns_follow_the_work_of_jobs(line):
    for _ in range(6):
        line.join("a", 3.0)
    for _ in range(6):
        line.join("b", 1.0)
    assert line.waiting[:8] == ["a1", "b1", "b2", "b3", "a2", "b4", "b5", "b6"]


def test_past_service_does_not_delay_a_key(line):
    for _ in range(9):
        line.join("a")
    line.join("b")
    while line.waiting[0] != "a9":
        line.take()
    line.join("a")
    line.join("b")
    assert line.waiting == ["a9", "b2", "a10"]


def test_an_empty_queue_forgets_the_past(line):
    line.join("a", 100.0)
    line.take()
    line.join("a")
    line.join("b")
    assert line.waiting == ["a2", "b1"]
    assert set(line.redis.hkeys("clipsynth:turns:tiny")) == {b"", b"a", b"b"}


def test_a_requeued_job_does_not_delay_later_keys(line):
    for _ in range(9):
        line.join("a")
    taken = [line.redis.lpop("rq:queue:clipsynth-tiny") for _ in range(9)]
    for _ in range(3):
        line.join("a")
    line.redis.lpush("rq:queue:clipsynth-tiny", taken[-1])
    line.join("b")
    assert line.waiting == ["a9", "a10", "b1", "a11", "a12"]


def test_no_job_is_lost_when_jobs_leave_and_return(line):
    draw = random.Random(0)
    gone = set()
    for _ in range(150):
        name = line.join(draw.choice("abbcccc"), draw.choice([0.1, 1, 7]))
        if draw.random() < 0.2:
            withdraw(line.redis, name, "tiny")
            gone.add(line.names[name])
        if draw.random() < 0.3:
            taken = line.redis.lpop("rq:queue:clipsynth-tiny")
            if taken is None:
                continue
            if draw.random() < 0.5:
                line.redis.lpush("rq:queue:clipsynth-tiny", taken)  # its worker was lost
            else:
                gone.add(line.names[taken.decode()])
    assert sorted(line.waiting) == sorted(set(line.names.values()) - gone)
    for owner in "abc":
        own = [int(name[1:]) for name in line.waiting if name[0] == owner]
        assert own == sorted(own)


def before(line, load, running, owner):
    """Return the seconds before a request where one work takes a second."""
    line.redis.flushall()
    line.state.announce(INFO)
    if load:
        line.redis.hset("clipsynth:load:tiny", mapping=load)
    for name, work in running.items():
        line.redis.zadd("rq:wip:clipsynth-tiny", {f"{name}1:an-execution": 1})
        line.redis.hset(f"clipsynth:gen:{name}1", mapping={"owner": name, "work": work})
    return forecast(line.redis, Reservation("", owner, "tiny", 0), SECOND, 1).base_s


def test_an_estimate_follows_the_fair_queue(line):
    assert before(line, {}, {}, "b") == 0
    alone = {"n": 10, "w": 50, "n:a": 10, "w:a": 50}
    assert before(line, alone, {}, "a") == 50
    assert before(line, alone, {"a": 10}, "a") == 45
    assert before(line, alone, {}, "b") == 5  # one job of a's
    assert before(line, alone, {"a": 10}, "b") == 10  # what runs, half done, and one more
    both = {**alone, "n:b": 2, "w:b": 20}
    assert before(line, both, {}, "b") == 45
    assert before(line, {**both, "w:b": 500}, {}, "b") == 550
