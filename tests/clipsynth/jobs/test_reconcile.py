"""Unfinished generations that are on no list of their queue are seen to, and no others."""

from __future__ import annotations

import json

import pytest
from redis import Redis
from rq.job import Job

from app.middleware.redis_metrics import RedisCollector
from clipsynth.jobs.queue import get_queue
from clipsynth.jobs.reconcile import OrphanReconciler, orphans_found
from clipsynth.jobs.store import End, JobStore
from clipsynth.redis_keys import RECORD
from clipsynth.schemas.generation import JobPayload
from clipsynth.services.janitor import run
from clipsynth.settings import Settings

ID, OTHER = f"gen_{1:026x}", f"gen_{2:026x}"
EVERY_END = [("succeeded", {"outputs": ["x"]}), ("failed", {"error": "{}"}), ("expired", {})]


class Place:
    """A queue without a worker, and a janitor's look at it."""

    def __init__(self, settings):
        self.settings = settings
        self.redis = Redis.from_url(settings.redis_url)
        self.redis.flushall()
        self.state = JobStore.from_settings(self.redis, settings)
        self.queue = get_queue("tiny", self.redis)
        self.orphans = OrphanReconciler(self.state)

    def post(self, generation_id=ID):
        payload = JobPayload(
            model="tiny",
            prompt="rain",
            image_key=None,
            negative_prompt=None,
            seed=0,
            output_formats=["wav"],
            num_inference_steps=2,
            guidance_scale=1.0,
            duration_s=1.0,
            num_outputs=1,
        )
        self.state.submit(generation_id, payload)

    def lose(self, *fields):
        """Post, start, and have the job vanish from RQ."""
        self.post()
        self.state.start(ID, batched_with_others=False)
        if fields:
            self.redis.hset(RECORD + ID, *fields)
        self.redis.delete(self.queue.key, Job.key_for(ID))

    def status(self):
        return self.state.get(ID).status


@pytest.fixture
def place(redis_url, tmp_path):
    place = Place(Settings(redis_url=redis_url, data_dir=tmp_path))
    yield place
    place.redis.close()


@pytest.mark.parametrize(("end", "fields"), EVERY_END)
def test_an_earlier_cancel_wins_over_the_end(place, end, fields):
    place.post()
    place.state.start(ID, batched_with_others=False)
    place.state.cancel(ID)
    with place.redis.pubsub(ignore_subscribe_messages=True) as events:
        events.subscribe(f"clipsynth:events:{ID}")
        events.get_message(timeout=5)
        assert not place.state.transition(ID, end, **fields)
        assert events.get_message(timeout=5)["data"] == b"canceled"
    generation = place.state.get(ID)
    assert (generation.status, generation.outputs, generation.error) == ("canceled", [], None)
    assert generation.expires_at == pytest.approx(generation.finished_at + place.state.result_ttl_s)
    assert place.state.ended() == {"canceled": 1}
    assert not place.state.transition(ID, end, **fields)
    assert place.state.ended() == {"canceled": 1}


@pytest.mark.parametrize("wherever", ["waits", "taken", "leased"])
def test_a_job_on_a_list_is_no_orphan(place, wherever):
    place.post()
    if wherever != "waits":
        place.redis.lpop(place.queue.key)
    if wherever == "taken":
        place.redis.rpush(place.queue.intermediate_queue_key, ID)
    if wherever == "leased":
        place.redis.zadd("rq:wip:clipsynth-tiny", {f"{ID}:an-execution": 1})
    assert [place.orphans.look() for _ in range(3)] == [0, 0, 0]
    assert place.status() == "queued"


def test_an_orphan_is_requeued_first_at_the_second_check(place):
    place.lose()
    place.post(OTHER)
    assert place.orphans.look() == 0
    assert place.status() == "processing"
    assert place.orphans.look() == 1
    assert place.status() == "queued"
    assert place.queue.job_ids == [ID, OTHER]
    job = place.queue.fetch_job(ID)
    assert job.args[1]["prompt"] == "rain"
    assert place.state.status_views([ID])[0].lost == 1  # without a count it could be lost without end
    assert [place.orphans.look() for _ in range(2)] == [0, 0]
    assert orphans_found(place.state) == 1


def test_an_orphan_of_a_newer_version_is_left_alone(place):
    place.lose()
    known = json.loads(place.redis.hget(RECORD + ID, "input"))
    prompts = [{"text": "rain", "colour": "red"}]
    place.redis.hset(RECORD + ID, "input", json.dumps(known | {"prompts": prompts, "mood": "sad"}))
    assert place.state.get(ID).input.prompts[0].text == "rain"
    assert [place.orphans.look() for _ in range(2)] == [0, 0]
    assert place.status() == "processing"


def test_a_queued_orphan_is_requeued(place):
    place.post()
    place.redis.delete(place.queue.key)
    place.orphans.look()
    assert place.orphans.look() == 1
    assert place.queue.job_ids == [ID]


def test_only_one_janitor_requeues_an_orphan(place):
    place.lose()
    other = OrphanReconciler(place.state)
    assert (place.orphans.look(), other.look()) == (0, 0)
    assert (place.orphans.look(), other.look()) == (1, 0)
    assert place.queue.job_ids == [ID]


def test_an_orphan_that_changes_meanwhile_is_left_alone(place, monkeypatch):
    place.lose()
    place.orphans.look()
    status_views = place.state.status_views

    def read_and_change(ids):
        found = status_views(ids)
        place.state.start(ID, batched_with_others=False)  # as a worker that has it, or another janitor
        return found

    monkeypatch.setattr(place.state, "status_views", read_and_change)
    assert place.orphans.look() == 0
    assert place.status() == "processing"
    assert place.queue.count == 0


@pytest.mark.parametrize(
    ("fields", "status"),
    [(("cancel_requested", 1), "canceled"), (("input", "{}"), "failed"), (("lost", "x"), "failed")],
)
def test_an_orphan_that_cannot_be_requeued_ends(place, fields, status):
    place.lose(*fields)
    place.orphans.look()
    assert place.orphans.look() == 1
    assert place.redis.hget(RECORD + ID, "status").decode() == status
    assert place.queue.count == 0
    assert place.state.unfinished() == {}


def test_a_removed_record_is_checked_only_once(place):
    place.lose()
    place.redis.delete(RECORD + ID)
    assert [place.orphans.look() for _ in range(3)] == [0, 1, 0]
    assert place.state.unfinished() == {}


def test_a_job_ended_by_an_older_version_is_no_orphan(place):
    place.lose("status", "succeeded")
    assert [place.orphans.look() for _ in range(2)] == [0, 0]
    assert place.status() == "succeeded"
    assert (place.state.unfinished(), place.queue.count) == ({}, 0)


def test_ended_and_forgotten_jobs_are_not_unfinished(place):
    place.post()
    place.post(OTHER)
    assert place.state.unfinished() == {ID: "tiny", OTHER: "tiny"}
    with place.redis.pipeline() as pipeline:
        place.state.queue_end(pipeline, End(ID, "succeeded", {"outputs": []}))
        pipeline.execute()
    place.state.forget(OTHER)
    assert place.state.unfinished() == {}


def test_the_janitor_requeues_orphans_and_counts_them(place, monkeypatch):
    place.lose()
    monkeypatch.setattr("clipsynth.services.janitor.ORPHAN_INTERVAL_S", 0.0)

    class Twice:
        """Set at the third pass."""

        passes = 0

        def is_set(self):
            self.passes += 1
            return self.passes > 2

        def wait(self, _):
            pass

    run(place.settings, Twice())
    assert place.queue.job_ids == [ID]
    found = {metric.name: metric for metric in RedisCollector(place.state).collect()}
    assert found["clipsynth_orphaned_jobs"].samples[0].value == 1
