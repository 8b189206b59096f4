"""Records that somebody spoilt in Redis hurt their own job alone."""

from __future__ import annotations

import time

import pytest
from rq.job import Job
from rq.serializers import JSONSerializer

from clipsynth.services.processes import wait_until
from tests.support.workplace import TIMEOUT_S


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
