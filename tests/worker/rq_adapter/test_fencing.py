"""A worker that seemed lost cannot change the files of a generation that has succeeded."""

from __future__ import annotations

import threading

from fastapi.testclient import TestClient
from redis.exceptions import ConnectionError

from app.main import create_app
from clipsynth.services.processes import wait_until
from clipsynth.storage import audio_key
from tests.support.workplace import TIMEOUT_S, Toy


class PausedToy(Toy):
    """A model that makes another sound, and stops before it until `woken` is set."""

    def __init__(self):
        super().__init__()
        self.woken = threading.Event()

    def decode(self, rows, duration_s):
        assert self.woken.wait(TIMEOUT_S)
        return [sound + 1 for sound in super().decode(rows, duration_s)]


def claim_and_pause(place):
    """Return a worker that has claimed the next job and stands still before its sound is written."""
    worker = place.new_worker()
    worker.engine.model = worker.runner.model = PausedToy()
    worker._begin(worker.claimer.claim(1))
    return worker


def recover(place, generation_id):
    recover = place.worker.leases.recover
    assert wait_until(lambda: recover() or place.statuses(generation_id) == ["queued"], timeout_s=TIMEOUT_S)


def etags(client, generation_id):
    paths = [f"/v1/generations/{generation_id}/{kind}/0" for kind in ("audio", "spectrogram", "peaks")]
    responses = [client.get(path) for path in paths]
    assert [response.status_code for response in responses] == [200] * 3
    return [response.headers["etag"] for response in responses]


def test_a_paused_worker_cannot_change_a_finished_sound(place):
    generation_id = place.post()
    paused = claim_and_pause(place)
    recover(place, generation_id)
    place.work()
    assert place.statuses(generation_id) == ["succeeded"]
    with TestClient(create_app(place.settings), base_url="http://localhost") as client:
        before = etags(client, generation_id)
        winner = place.storage.attempts(generation_id)
        paused.engine.model.woken.set()
        assert wait_until(lambda: not paused.claimed, timeout_s=TIMEOUT_S)
        assert etags(client, generation_id) == before
    assert place.storage.attempts(generation_id) == winner
    assert len(winner) == 1


def test_a_worker_that_wakes_first_wins_with_its_own_files(place):
    generation_id = place.post()
    paused = claim_and_pause(place)
    recover(place, generation_id)
    paused.engine.model.woken.set()
    assert wait_until(lambda: not paused.claimed, timeout_s=TIMEOUT_S)
    place.work()
    assert place.statuses(generation_id) == ["succeeded"]
    folder = place.state.get(generation_id).folder
    assert place.storage.get(audio_key(folder, 0, "wav"))
    assert {folder.rpartition("/")[2]} == place.storage.attempts(generation_id)


def test_the_winner_removes_files_of_a_lost_attempt(place):
    generation_id = place.post()
    place.storage.put(audio_key(f"{generation_id}/0123abcd", 0, "wav"), b"half")
    place.storage.put(f"{generation_id}/in/0.png", b"image")
    place.lose()
    place.work()
    assert place.statuses(generation_id) == ["succeeded"]
    assert len(place.storage.attempts(generation_id) - {"0123abcd"}) == 1
    assert "0123abcd" not in place.storage.attempts(generation_id)
    assert place.storage.get(f"{generation_id}/in/0.png") == b"image"


def test_a_failed_job_keeps_no_files(place):
    place.toy.decode = lambda rows, _: [
        rows[0].latents.flatten().numpy(),
        rows[0].latents.numpy() * float("nan"),
    ]
    generation_id = place.post(num_outputs=2)
    place.work()
    assert place.statuses(generation_id) == ["failed"]
    assert not place.storage.attempts(generation_id)


def test_a_lost_answer_to_the_end_keeps_the_files(place, monkeypatch):
    """Redis has ended the job, but the worker never learns so and tries again."""
    finalizer = place.worker.finalizer
    finish, answers = finalizer._finish, []

    def lose_answer(batch):
        if not answers:
            answers.append("lost")
            monkeypatch.setattr(finalizer.runner, "clean_up", lambda *_, **__: None)
            finish(batch)
            monkeypatch.undo()
            raise ConnectionError("lost")
        finish(batch)

    finalizer._finish = lose_answer
    generation_id = place.post()
    place.work()
    assert answers
    assert place.storage.get(audio_key(place.state.get(generation_id).folder, 0, "wav"))


def test_results_of_older_workers_stay_readable(place):
    generation_id = place.post()
    place.work()
    place.redis.hdel(f"clipsynth:gen:{generation_id}", "attempt")
    place.storage.put(audio_key(generation_id, 0, "wav"), b"old sound")
    place.storage.put_previews(generation_id, 0, spectrogram=b"old", peaks=b"{}")
    with TestClient(create_app(place.settings), base_url="http://localhost") as client:
        etags(client, generation_id)
        assert client.get(f"/v1/generations/{generation_id}/audio/0").content == b"old sound"


def test_a_full_redis_is_waited_for_with_the_sound_made(place):
    """At its `maxmemory`, Redis refuses the end; the worker keeps it and does not make the sound again."""
    refused = []
    finish = place.worker.finalizer._finish

    def fill(batch):
        if not refused:
            place.redis.config_set("maxmemory", "1")
            refused.append(batch)
            try:
                finish(batch)
            finally:
                place.redis.config_set("maxmemory", "0")
        finish(batch)

    place.worker.finalizer._finish = fill
    generation_id = place.post()
    place.work()
    assert refused
    assert place.statuses(generation_id) == ["succeeded"]
    assert len(place.toy.batches) == 2  # its two steps, once
