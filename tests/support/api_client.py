"""The API without a worker, driven in process."""

from __future__ import annotations

from fastapi.testclient import TestClient
from redis import Redis

from app.main import create_app
from clipsynth.jobs.queue import get_queue
from clipsynth.jobs.store import JobStore, new_id
from clipsynth.schemas.generation import Output, Progress
from clipsynth.schemas.model_info import ModelInfo
from clipsynth.schemas.payload import JobPayload
from clipsynth.services.processes import wait_until
from clipsynth.storage import Storage, audio_key

INFO = ModelInfo(
    name="tiny",
    version="0",
    sample_rate=16000,
    min_duration_s=0.5,
    max_duration_s=5,
    duration_s=4,
    num_inference_steps=2,
    guidance_scale=4,
)


SOUND = b"RIFF..."


def wait_for(heard):
    assert heard is None or heard.acquire(timeout=10)


class Service:
    def __init__(self, settings):
        self.redis = Redis.from_url(settings.redis_url)
        self.redis.flushall()
        self.state, self.storage = JobStore.from_settings(self.redis, settings), Storage(settings.results_url)
        self.state.announce(INFO)
        self.client = TestClient(create_app(settings), base_url="http://localhost")

    def work(self, heard=None):
        """Run the next job as a worker would; with `heard`, wait until the streams have sent each change."""
        queue = get_queue("tiny", self.redis)
        assert wait_until(lambda: bool(queue.job_ids), timeout_s=10)
        job_id = queue.pop_job_id()
        wait_for(heard)
        self.state.start(job_id, batched_with_others=False)
        wait_for(heard)
        self.state.set_progress({job_id: Progress(step=1, num_steps=2)})
        wait_for(heard)
        self.storage.put(audio_key(job_id, 0, "wav"), SOUND)
        output = Output(
            index=0,
            url=f"/v1/generations/{job_id}/audio/0",
            media_type="audio/wav",
            format="wav",
            duration_s=4,
            sample_rate=16000,
            seed=0,
        )
        self.state.transition(job_id, "succeeded", outputs=[output.model_dump()])

    def post(self, **headers):
        return self.client.post("/v1/generations", json={"prompt": "a dog"}, headers=headers)


def queued(state):
    """Submit a job for the model, and return its id."""
    state.announce(INFO)
    generation_id = new_id()
    payload = JobPayload(
        model="tiny", prompt="a", image_key=None, negative_prompt=None, seed=0,
        num_inference_steps=2, guidance_scale=1, duration_s=1, num_outputs=1, output_formats=["wav"],
    )  # fmt: skip
    state.submit(generation_id, payload)
    return generation_id
