"""Jobs of lost workers, over a real Redis."""

from __future__ import annotations

import time

import pytest
from redis import Redis

from clipsynth.process import wait_until
from clipsynth.queue import connect, enqueue, get_queue
from clipsynth.schemas import JobPayload
from clipsynth.settings import Settings
from clipsynth.state import State
from clipsynth.storage import Storage
from worker.main import Handler
from worker.rq_worker import GenerationJob, LeaseWorker

GENERATION = "gen_" + "0" * 26


@pytest.fixture
def worker(redis_url, monkeypatch):
    redis = Redis.from_url(redis_url)
    redis.flushall()
    settings = Settings(redis_url=redis_url)
    payload = JobPayload(
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
    enqueue(redis, State.from_settings(redis, settings), GENERATION, payload, settings)
    ran = []
    monkeypatch.setattr(
        GenerationJob, "run", staticmethod(lambda generation_id, _: ran.append(generation_id)), raising=False
    )
    worker = LeaseWorker(get_queue("tiny", connect(redis_url)), redis_url=redis_url, lease_s=1, beat_s=0.2)
    worker.ran = ran
    return worker


def take(worker):
    """Take the job from the queue as a worker does that dies right then."""
    queue = worker.queues[0]
    worker.connection.lmove(queue.key, queue.intermediate_queue_key, "LEFT", "RIGHT")
    return queue


def test_a_job_that_was_taken_and_never_claimed_is_put_back_after_the_lease(worker):
    queue = take(worker)
    worker.recover()
    assert queue.count == 0
    time.sleep(1.05)
    worker.recover()
    assert queue.job_ids == [GENERATION]
    assert queue.intermediate_queue.get_job_ids() == []
    worker.work(burst=True, logging_level="ERROR")
    assert worker.ran == [GENERATION]


def test_a_job_that_is_claimed_is_left_alone(worker):
    queue = take(worker)
    job = queue.fetch_job(GENERATION)
    worker.prepare_execution(job)
    worker.recover()
    time.sleep(0.5)
    worker.recover()
    assert queue.count == 0


def test_rqs_own_records_of_ended_jobs_are_pruned(worker):
    queue = worker.queues[0]
    worker.connection.zadd(queue.finished_job_registry.key, {"old": 1})
    worker.connection.zadd(queue.failed_job_registry.key, {"old": 1})
    worker.recover()
    assert not worker.connection.exists(queue.finished_job_registry.key, queue.failed_job_registry.key)


def test_a_job_whose_worker_dies_three_times_is_lost(worker, monkeypatch):
    settings = Settings(redis_url="redis://unused", max_attempts=3)
    state = State.from_settings(worker.connection, settings)
    handler = Handler(None, state, Storage(settings.results_url), max_attempts=3)
    monkeypatch.setattr(GenerationJob, "abandoned", staticmethod(handler.abandoned), raising=False)
    for attempt in (1, 2, 3):
        queue = take(worker)
        job = queue.fetch_job(GENERATION)
        job = GenerationJob.fetch(job.id, connection=worker.connection, serializer=worker.serializer)
        worker.prepare_execution(job)  # with a lease of 1 s, which nobody renews
        worker.prepare_job_execution(job, remove_from_intermediate_queue=True)
        assert state.start(GENERATION) == attempt
        assert wait_until(
            lambda: worker.recover() or state.get(GENERATION).status != "processing", timeout_s=10
        )
        assert state.get(GENERATION).status == ("queued" if attempt < 3 else "failed")
    assert state.get(GENERATION).error.code == "worker_lost"
    assert state.start(GENERATION) == 0  # RQ tries once more, which changes nothing
