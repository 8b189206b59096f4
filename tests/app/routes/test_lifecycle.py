"""Generations that fail, are lost, canceled, removed or expire."""

from __future__ import annotations

import itertools
import os
import time
from pathlib import Path

import pytest
from rq import Queue

from clipsynth.errors import StorageUnavailable
from clipsynth.schemas.generation import Output
from clipsynth.services.janitor import expire, sweep
from clipsynth.settings import Settings
from clipsynth.storage import audio_key
from tests.support.api_service import SHORT, check_problem, image, serving


@pytest.fixture
def service(redis_url, tiny_pipeline, tmp_path):
    yield from serving(Settings(redis_url=redis_url, data_dir=tmp_path), tiny_pipeline)


def rewrite(job, func_name, args):
    """Change a queued job as someone with access to Redis could."""
    job.func_name, job.instance, job.args, job.kwargs = func_name, None, args, {}
    job.save()


def test_a_function_name_in_redis_is_never_run(service):
    response = service.post({"prompt": "a", **SHORT})
    job = service.queue.fetch_job(response.json()["id"])
    rewrite(job, "os.mkdir", job.args)
    assert service.finish(response)["status"] == "succeeded"
    assert not os.path.exists(response.json()["id"])


def test_a_payload_of_another_version_fails_with_a_reason(service):
    response = service.post({"prompt": "a", **SHORT})
    job = service.queue.fetch_job(response.json()["id"])
    rewrite(job, "anything", (job.id, {"v": 2}))
    assert service.finish(response)["error"]["code"] == "invalid_request"


def test_an_error_of_the_model_is_not_shown(service, monkeypatch):
    def broken(*_):
        raise RuntimeError("secret")

    monkeypatch.setattr(service.predictor.pipeline.denoiser, "forward", broken)
    done = service.finish(service.post({"prompt": "a", **SHORT}))
    assert (done["status"], done["error"]["code"]) == ("failed", "generation_failed")
    assert "secret" not in str(done)


def test_a_job_that_loses_worker_after_worker_fails(service):
    generation_id = service.post({"prompt": "a", **SHORT}).json()["id"]
    for _ in range(3):
        assert service.state.get(generation_id).status == "queued"
        assert service.state.start(generation_id, batched_with_others=False)
        service.worker.runner.requeue(generation_id)
    assert service.state.get(generation_id).error.code == "worker_lost"
    assert not service.state.start(generation_id, batched_with_others=False)  # final is final


def test_a_job_that_lost_its_worker_in_a_batch_reruns_alone(service):
    response = service.post({"prompt": "a", **SHORT})
    generation_id = response.json()["id"]
    for _ in range(5):
        assert service.state.start(generation_id, batched_with_others=True)
        service.worker.runner.requeue(generation_id)
    status_view = service.state.status_views([generation_id])[0]
    assert (status_view.lost, status_view.run_alone) == (0, True)
    assert service.finish(response)["status"] == "succeeded"


def test_a_job_that_was_lost_too_often_is_not_started_again(service):
    response = service.post({"prompt": "a", **SHORT})
    for _ in range(3):
        service.state.start(response.json()["id"], batched_with_others=False)
        service.state.abandon(response.json()["id"])
    assert service.finish(response)["error"]["code"] == "worker_lost"


def test_a_job_that_runs_into_its_time_limit_fails(service, monkeypatch):
    response = service.post({"prompt": "a", **SHORT, "num_inference_steps": 200})
    service.redis.hset(f"rq:job:{response.json()['id']}", "timeout", 1)
    during(service, monkeypatch, lambda: time.sleep(1.1))
    assert service.finish(response)["error"]["code"] == "timeout"


def test_what_expired_is_gone_with_its_files(service):
    service.state.result_ttl_s = 0
    response = service.post(files={"image": ("x", image("PNG"))}, data=SHORT)
    done = service.finish(response)
    assert done["status"] == "succeeded"
    folder = Path(service.storage._root) / done["id"]
    assert folder.is_dir()
    assert sweep(service.state, service.storage) == 1
    assert not folder.exists()
    check_problem(service.client.get(response.headers["location"]), 410, "gone")
    check_problem(service.client.get(done["outputs"][0]["url"]), 410, "gone")
    assert sweep(service.state, service.storage) == 0


def test_files_that_cannot_be_removed_hold_up_no_others(service, monkeypatch):
    service.state.result_ttl_s = 0
    stuck, _ = (service.finish(service.post({"prompt": "a", **SHORT}))["id"] for _ in range(2))
    delete = service.storage.delete

    def refuses(generation_id):
        if generation_id == stuck:
            raise StorageUnavailable("locked")
        delete(generation_id)

    monkeypatch.setattr(service.storage, "delete", refuses)
    assert sweep(service.state, service.storage) == 1
    assert [path.name for path in Path(service.storage._root).iterdir()] == [stuck]
    assert sweep(service.state, service.storage) == 0  # tried again later
    monkeypatch.undo()
    service.state.postpone(stuck, -1)
    assert sweep(service.state, service.storage) == 1
    assert not list(Path(service.storage._root).iterdir())


def test_what_has_not_expired_stays(service):
    done = service.finish(service.post({"prompt": "a", **SHORT}))
    assert sweep(service.state, service.storage) == 0
    assert done["expires_at"] == pytest.approx(done["finished_at"] + service.state.result_ttl_s)


def test_an_image_whose_request_was_never_queued_is_removed(service, monkeypatch):
    monkeypatch.setattr(Queue, "push_job_id", lambda *_, **__: 1 / 0)
    monkeypatch.setattr("clipsynth.jobs.store.UNCREATED_S", 0)
    assert service.post(files={"image": ("x", image("PNG"))}).status_code == 500
    assert len(list(Path(service.storage._root).iterdir())) == 1
    assert sweep(service.state, service.storage) == 1
    assert not list(Path(service.storage._root).iterdir())


def test_a_queued_generation_is_canceled_at_once(service):
    response = service.post({"prompt": "a", **SHORT})
    canceled = service.client.post(response.json()["links"]["cancel"])
    assert (canceled.status_code, canceled.json()["status"]) == (200, "canceled")
    assert service.queue.count == 0
    assert not service.redis.keys("rq:job:*")
    assert service.finish(response)["status"] == "canceled"
    check_problem(service.client.post(response.json()["links"]["cancel"]), 409, "already_ended")


def during(service, monkeypatch, act):
    """Have `act` done before the second step of whatever is generated."""
    denoiser = service.predictor.pipeline.denoiser
    forward = denoiser.forward
    steps = itertools.count()

    def acting(*arguments):
        if next(steps) == 1:
            act()
        return forward(*arguments)

    monkeypatch.setattr(denoiser, "forward", acting)


def test_a_generation_is_canceled_while_it_is_processed(service, monkeypatch):
    response = service.post({"prompt": "a", **SHORT, "num_outputs": 3})
    link = response.headers["location"]
    answers = []
    during(service, monkeypatch, lambda: answers.append(service.client.post(f"{link}/cancel")))
    assert service.finish(response)["status"] == "canceled"
    assert [(a.status_code, a.json()["status"]) for a in answers] == [(202, "processing")]


def test_a_worker_presumed_lost_keeps_the_first_sound(service, monkeypatch):
    response = service.post({"prompt": "a", **SHORT})
    generation_id = response.json()["id"]
    output = Output(
        index=0,
        url=f"/v1/generations/{generation_id}/audio/0",
        media_type="audio/wav",
        format="wav",
        duration_s=0.5,
        sample_rate=16000,
        seed=0,
    )

    def succeed():
        service.storage.put(audio_key(f"{generation_id}/0123abcd", 0, "wav"), b"first")
        fields = {"outputs": [output.model_dump()], "attempt": "0123abcd"}
        service.state.transition(generation_id, "succeeded", **fields)

    during(service, monkeypatch, succeed)
    done = service.finish(response)
    assert done["status"] == "succeeded"
    assert service.client.get(done["outputs"][0]["url"]).content == b"first"


def test_a_lost_generation_that_was_canceled_is_not_run_again(service):
    response = service.post({"prompt": "a", **SHORT})
    service.state.start(response.json()["id"], batched_with_others=False)
    assert service.client.post(response.headers["location"] + "/cancel").status_code == 202
    service.worker.runner.requeue(response.json()["id"])
    assert service.finish(response)["status"] == "canceled"


@pytest.mark.parametrize("ended", [False, True])
def test_delete_forgets_a_generation_and_its_files(service, ended):
    response = service.post(files={"image": ("x", image("PNG"))}, data=SHORT)
    if ended:
        service.finish(response)
    assert service.client.delete(response.headers["location"]).status_code == 204
    check_problem(service.client.get(response.headers["location"]), 410, "gone")
    check_problem(service.client.delete(response.headers["location"]), 410, "gone")
    assert service.queue.count == 0
    assert not list(Path(service.storage._root).iterdir())


def test_delete_stops_what_is_processed(service, monkeypatch):
    response = service.post({"prompt": "a", **SHORT, "num_outputs": 3})
    answers = []
    during(service, monkeypatch, lambda: answers.append(service.client.delete(response.headers["location"])))
    service.worker.work(burst=True, logging_level="ERROR")
    assert [a.status_code for a in answers] == [202]
    check_problem(service.client.get(response.headers["location"]), 410, "gone")
    assert not Path(service.storage._root).exists() or not list(Path(service.storage._root).iterdir())


def test_what_waits_beyond_its_deadline_expires(service):
    overdue = service.post({"prompt": "a", "deadline_s": 0.01, **SHORT})
    waiting = service.post({"prompt": "a", "deadline_s": 100, **SHORT})
    time.sleep(0.02)
    assert expire(service.state) == 1
    assert expire(service.state) == 0
    assert service.client.get(overdue.headers["location"]).json()["status"] == "expired"
    assert service.queue.job_ids == [waiting.json()["id"]]
    check_problem(service.client.get(overdue.headers["location"] + "/audio/0"), 409, "not_ready")
    assert service.finish(waiting)["status"] == "succeeded"


def test_the_worker_takes_nothing_that_is_overdue(service, monkeypatch):
    overdue = service.post({"prompt": "a", "deadline_s": 0.01, **SHORT})
    time.sleep(0.02)
    during(service, monkeypatch, lambda: pytest.fail("it was run"))
    assert service.finish(overdue)["status"] == "expired"
