"""The worker on RQ, over a real Redis: claims, leases, lost workers."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest
from rq.command import send_stop_execution_command, send_stop_job_command
from rq.job import Job
from rq.serializers import JSONSerializer

from clipsynth.redis_keys import EXPIRY
from clipsynth.services.janitor import sweep
from clipsynth.services.processes import wait_until
from clipsynth.storage import audio_key
from tests.support.workplace import TIMEOUT_S, Toy
from worker.engine import SamplingRequest
from worker.main import HEARTBEAT_TIMEOUT_S, ServedBundle, is_alive, model_info
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
    assert sorted(place.toy.batches[1]) == sorted(["rain", "wind", "wind", "broken", "hail"])
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


@pytest.mark.parametrize("record", [{"data": b"not compressed"}, {"data": b"[]", "created_at": b"never"}])
def test_a_record_that_cannot_be_read_does_not_stop_the_worker(place, record):
    unreadable, good = place.post(), place.post("wind")
    place.redis.hset(f"rq:job:{unreadable}", mapping=record)
    place.work()
    assert place.statuses(unreadable, good) == ["failed", "succeeded"]
    assert place.state.get(unreadable).error.code == "invalid_request"


def test_a_hostile_record_runs_nothing(place, tmp_path):
    """A writer to Redis cannot run code: the worker ignores a record's function and callbacks."""
    generation_id = place.post("broken")
    job = Job.fetch(generation_id, place.redis, JSONSerializer)
    job.func_name, job.instance, job.args, job.kwargs = "os.mkdir", None, (str(tmp_path / "made"),), {}
    job.save()
    hostile = {
        "success_callback_name": "os.getpid",
        "failure_callback_name": "os.abort",
        "origin": "elsewhere",
    }
    place.redis.hset(job.key, mapping=hostile)
    place.work()
    assert place.statuses(generation_id) == ["failed"]
    assert not (tmp_path / "made").exists()
    assert place.toy.batches == []


@pytest.mark.parametrize("first", [True, False], ids=["first", "claimed among others"])
@pytest.mark.parametrize("key", ["rq:executions", "rq:job", "clipsynth:gen"])
def test_a_key_of_another_type_fails_its_own_job_alone(place, key, first):
    """A string stands where a job's hash or register belongs: jobs claimed with it still run."""
    others = [] if first else [place.post("rain")]
    hostile = place.post("wind")
    others.append(place.post("hail"))
    place.redis.delete(f"{key}:{hostile}")
    place.redis.set(f"{key}:{hostile}", "hostile")
    place.work()
    assert place.statuses(*others) == ["succeeded"] * len(others)
    recover = place.worker.leases.recover
    assert wait_until(lambda: recover() or place.nothing_left(), timeout_s=TIMEOUT_S)
    assert not place.redis.exists(f"rq:executions:{hostile}", f"rq:job:{hostile}")
    assert not place.redis.keys("rq:execution:*")
    assert all("wind" not in batch for batch in place.toy.batches)
    if key != "clipsynth:gen":
        assert place.statuses(hostile) == ["failed"]
        assert place.state.get(hostile).error.code == "invalid_request"


@pytest.mark.parametrize("hostile_write", ["type", "status"])
def test_a_record_spoilt_while_it_runs_does_not_block_others(place, hostile_write):
    hostile, good = place.post("rain", num_inference_steps=200), place.post("wind", num_inference_steps=100)
    key = f"clipsynth:gen:{hostile}"

    def before_step(_):
        if len(place.toy.batches) == 1:
            if hostile_write == "type":
                place.redis.delete(key)
                place.redis.set(key, "hostile")
            else:
                place.redis.hset(key, mapping={"status": "hostile", "cancel_requested": "1"})
        time.sleep(0.005)

    place.toy.before_step = before_step
    place.work()
    assert place.statuses(good) == ["succeeded"]
    assert place.nothing_left()
    assert place.toy.batches[-1] == ["wind"]


def test_a_job_that_cannot_be_finished_does_not_block_others(place, caplog):
    """Here RQ's register of a job's executions is made something else while it runs."""
    hostile, good = place.post("rain"), place.post("wind")

    def before_step(_):
        if len(place.toy.batches) == 1:
            place.redis.set(f"rq:executions:{hostile}", "no register")

    place.toy.before_step = before_step
    place.work()
    assert place.statuses(hostile, good) == ["succeeded"] * 2
    assert place.nothing_left()
    assert f"job {hostile} is not finished" in caplog.text


def test_a_stop_signal_finishes_running_jobs_and_claims_no_more(place):
    running = place.post(num_inference_steps=50)
    waiting = []

    def before_step(_):
        if not waiting:
            os.kill(os.getpid(), signal.SIGTERM)
            assert wait_until(lambda: place.worker._stop_requested, timeout_s=TIMEOUT_S)
            waiting.append(place.post("wind"))

    place.toy.before_step = before_step
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        place.worker.work(logging_level="ERROR")
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert place.statuses(running, *waiting) == ["succeeded", "queued"]
    assert place.queue.job_ids == waiting


def test_a_swap_waits_for_the_running_jobs(place):
    order = []
    later = []

    def before_step(batch):
        order.extend(batch)
        if not later:
            place.worker.swap_when_idle(lambda: order.append("swap"))
            place.come_round()
            later.append(place.post("wind"))

    place.toy.before_step = before_step
    first = place.post("rain", num_inference_steps=3)
    place.work()
    assert order == ["rain"] * 3 + ["swap"] + ["wind"] * 2
    assert place.statuses(first, *later) == ["succeeded"] * 2


@pytest.mark.parametrize("by", ["job", "execution"])
def test_rqs_stop_commands_cancel_one_job(place, by):
    other, stopped = place.post("wind", num_inference_steps=20), place.post("rain", num_inference_steps=200)

    def before_step(batch):
        if "rain" in batch and not sent:
            execution = next(e for e in place.worker.executions.values() if e.job_id == stopped)
            if by == "job":
                send_stop_job_command(place.redis, stopped, JSONSerializer)
            else:
                send_stop_execution_command(place.redis, stopped, execution.id)
            sent.append(by)
        time.sleep(0.005)

    sent = []
    place.toy.before_step = before_step
    place.work()
    assert place.statuses(stopped, other) == ["canceled", "succeeded"]
    assert len(place.toy.batches) < 200


def test_rqs_duties_are_done_under_load(place):
    is_alive = []
    place.worker._maintain = lambda: is_alive.append(threading.get_ident())
    place.post()
    place.work()
    assert is_alive


def test_a_bundle_is_exchanged_without_dropping_jobs(place):
    new = Toy(num_inference_steps=7)
    served = ServedBundle(place.settings, lambda _: new, place.worker, model_info(place.toy.manifest))
    later = []

    def before_step(_):
        if not later:
            served.reload()
            place.come_round()
            later.append(place.post("wind"))

    place.toy.before_step = before_step
    first = place.post("rain", num_inference_steps=3)
    place.work()
    assert place.statuses(first, *later) == ["succeeded"] * 2
    assert (place.toy.batches, new.batches) == ([["rain"]] * 3, [["wind"]] * 2)
    info = place.state.model("tiny")
    assert (info.version, info.num_inference_steps) == (new.manifest.version, 7)
    assert info.cost.step_s == pytest.approx(1e-3)


@pytest.mark.parametrize("name", ["other", None])
def test_a_bundle_that_cannot_be_served_leaves_the_old_one(place, name, caplog):
    def load(_):
        if name is None:
            raise OSError("no such folder")
        return Toy(name=name)

    ServedBundle(place.settings, load, place.worker, model_info(place.toy.manifest)).reload()
    generation_id = place.post()
    place.work()
    assert place.statuses(generation_id) == ["succeeded"]
    assert place.toy.batches
    assert f"version {place.toy.manifest.version} stays" in caplog.text


def test_each_worker_binds_a_job_class_of_its_own(place):
    other = place.new_worker()
    assert other.job_class is not place.worker.job_class
    assert other.job_class.runner is other.runner
    assert place.worker.job_class.runner is place.worker.runner


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
