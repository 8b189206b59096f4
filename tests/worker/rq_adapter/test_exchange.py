"""Stop signals, RQ's commands, and an exchange of the bundle."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest
from rq.command import send_stop_execution_command, send_stop_job_command
from rq.serializers import JSONSerializer

from clipsynth.services.processes import wait_until
from tests.support.workplace import TIMEOUT_S, Toy
from worker.main import ServedBundle, model_info


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
