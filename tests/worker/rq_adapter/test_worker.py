"""The worker on RQ, over a real Redis: claims, leases, lost workers."""

from __future__ import annotations

import threading
import time

import pytest
from rq.job import Job
from rq.serializers import JSONSerializer

from clipsynth.redis_keys import EXPIRY
from clipsynth.services.janitor import sweep
from clipsynth.services.processes import wait_until
from clipsynth.storage import audio_key
from tests.support.workplace import TIMEOUT_S
from worker.engine import SamplingRequest
from worker.main import HEARTBEAT_TIMEOUT_S, is_alive
from worker.rq_adapter.claim import ClaimedJob, ClaimedJobs


def test_jobs_share_steps_and_each_ends_in_its_own_way(place):
    good, other = place.post("rain", num_inference_steps=6), place.post("wind", num_outputs=2)
    broken, refused = place.post("broken"), place.post("refused")
    last = place.post("hail", num_inference_steps=9)
    place.hold_first_step(4)
    place.work()
    assert place.statuses(good, other, broken, refused, last) == [
        "succeeded",
        "succeeded",
        "failed",
        "failed",
        "succeeded",
    ]
    assert place.state.get(broken).error.code == "generation_failed"
    assert place.state.get(refused).error.code == "invalid_request"
    assert [o.index for o in place.state.get(other).outputs] == [0, 1]
    assert place.storage.get(audio_key(place.state.get(other).folder, 1, "wav"))
    # Two threads prepare jobs: which is first into the batch is left open, that all share the step is not.
    shared = sorted(["rain", "wind", "wind", "broken", "hail"])
    assert shared in [sorted(batch) for batch in place.toy.batches]
    assert place.nothing_left()


def test_a_job_too_large_for_the_device_fails_alone(place):
    huge, good = place.post("huge"), place.post("rain")
    place.work()
    assert place.statuses(huge, good) == ["failed", "succeeded"]
    assert place.state.get(huge).error.code == "out_of_memory"


def test_a_job_joins_while_another_runs(place):
    place.hold_first_step(2)
    first = place.post("rain", num_inference_steps=3)
    threading.Thread(
        target=lambda: wait_until(lambda: place.toy.batches, timeout_s=TIMEOUT_S) and place.post("wind")
    ).start()
    place.work()
    assert place.toy.batches[:2] == [["rain"], ["rain", "wind"]]
    assert place.statuses(first) == ["succeeded"]
    assert place.nothing_left()


def test_a_cancel_takes_one_row_out_of_the_batch(place):
    unwanted, other = place.post("rain", num_inference_steps=200), place.post("wind", num_inference_steps=100)

    def before_step(batch):
        if batch == ["rain", "wind"] and place.state.get(unwanted).status == "processing":
            place.state.transition(unwanted, "processing", cancel_requested=1)
        time.sleep(0.005)

    place.toy.before_step = before_step
    place.work()
    assert place.statuses(unwanted, other) == ["canceled", "succeeded"]
    assert place.toy.batches[-1] == ["wind"]
    assert Job.fetch(unwanted, place.redis, JSONSerializer).get_status() == "stopped"


def test_an_accepted_cancel_is_kept_though_the_sound_is_made(place):
    unwanted = place.post()
    place.toy.before_step = lambda _: place.state.transition(unwanted, "processing", cancel_requested=1)
    place.work()
    assert place.statuses(unwanted) == ["canceled"]
    assert place.nothing_left()


@pytest.mark.parametrize("prompt", ["rain", "broken"])
def test_an_accepted_cancel_survives_a_worker_that_dies(place, prompt):
    unwanted = place.post(prompt)
    place.toy.before_step = lambda _: place.state.transition(unwanted, "processing", cancel_requested=1)
    place.worker.runner.clean_up = lambda *_, **__: None  # the transaction is all that it lived to do
    place.work()
    for _ in range(2):
        place.new_worker().leases.recover()
    assert place.statuses(unwanted) == ["canceled"]
    generation = place.state.get(unwanted)
    assert (generation.outputs, generation.error) == ([], None)
    assert place.nothing_left()
    assert place.state.ended() == {"canceled": 1}
    assert place.redis.zadd(EXPIRY, {unwanted: 1}) == 0  # it is to go by itself; now
    assert sweep(place.state, place.storage) == 1
    assert not (place.settings.data_dir / "results" / unwanted).exists()


def test_what_is_overdue_expires_at_the_claim_and_between_steps(place):
    waited, long = place.post(deadline_s=0.001), place.post("wind", num_inference_steps=200, deadline_s=1.0)
    place.toy.before_step = lambda _: time.sleep(0.01)
    time.sleep(0.01)
    place.work()
    assert place.statuses(waited, long) == ["expired", "expired"]
    assert all(batch == ["wind"] for batch in place.toy.batches)
    assert len(place.toy.batches) < 200


def test_a_job_taken_but_not_claimed_is_requeued_after_the_lease(place):
    generation_id = place.post()
    place.redis.lmove(place.queue.key, place.queue.intermediate_queue_key, "LEFT", "RIGHT")
    place.worker.leases.recover()
    assert place.queue.count == 0
    assert wait_until(lambda: place.worker.leases.recover() or place.queue.count, timeout_s=TIMEOUT_S)
    assert place.queue.job_ids == [generation_id]
    assert place.queue.intermediate_queue.get_job_ids() == []
    place.work()
    assert place.statuses(generation_id) == ["succeeded"]


def test_leases_are_renewed_while_jobs_run(place):
    generation_id = place.post(num_inference_steps=150)
    other, place.worker = place.worker, place.new_worker(lease_s=2)  # RQ counts in whole seconds
    place.worker.leases.start()
    place.toy.before_step = lambda _: (time.sleep(0.02), other.leases.recover())
    place.work()  # 3 s and more
    assert place.statuses(generation_id) == ["succeeded"]
    assert not place.state.status_views([generation_id])[0].run_alone
    assert len(place.toy.batches) == 150
    other.leases.stop()


def test_a_worker_is_alive_while_it_beats_though_redis_is_away(place):
    place.worker.leases.heartbeat_at = time.monotonic()
    assert is_alive(place.worker)
    place.worker.leases._answered_at -= 1000
    assert is_alive(place.worker)
    place.worker.leases.heartbeat_at -= HEARTBEAT_TIMEOUT_S + 1
    assert not is_alive(place.worker)


def test_an_idle_worker_waits_within_lease_and_connection(place):
    assert place.new_worker(lease_s=15).dequeue_timeout == 4
    assert place.worker.dequeue_timeout == 1


def test_rqs_own_records_of_ended_jobs_are_pruned(place):
    queue = place.queue
    place.redis.zadd(queue.finished_job_registry.key, {"old": 1})
    place.redis.zadd(queue.failed_job_registry.key, {"old": 1})
    place.worker.leases.recover()
    assert not place.redis.exists(queue.finished_job_registry.key, queue.failed_job_registry.key)


def test_a_job_whose_worker_dies_three_times_is_lost(place):
    generation_id = place.post()
    for lost in (1, 2, 3):
        place.lose()
        assert place.statuses(generation_id) == ["queued" if lost < 3 else "failed"]
    assert place.state.get(generation_id).error.code == "worker_lost"
    place.work()  # RQ tries once more, which changes nothing
    assert place.toy.batches == []
    assert place.nothing_left()


def test_a_job_that_was_lost_runs_alone_and_those_behind_it_wait(place):
    lost, *others = [place.post(name, num_inference_steps=20) for name in ("rain", "wind", "hail")]
    place.lose()
    assert place.queue.job_ids == [lost, *others]  # it has had its turn already
    place.work()
    assert place.statuses(lost, *others) == ["succeeded"] * 3
    assert all(batch == ["rain"] for batch in place.toy.batches if "rain" in batch)


def test_claimed_jobs_can_change_while_another_thread_reads_them():
    claimed, stop = ClaimedJobs(), threading.Event()

    def change():
        while not stop.is_set():
            jobs = [
                ClaimedJob(None, None, SamplingRequest(None, None, 1, 1, 1.0), 1, False, None, "")
                for _ in "abc"
            ]
            for job in jobs:
                claimed.add(job)
            assert claimed.get(jobs[0].request) is jobs[0]
            for job in jobs:
                claimed.remove(job)

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(2000):
            assert all(isinstance(job, ClaimedJob) for job in claimed.snapshot())
            assert len(claimed) <= 3
    finally:
        stop.set()
        thread.join()
    assert not claimed
