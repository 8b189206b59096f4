"""The API with a worker in the same process."""

from __future__ import annotations

import io
import itertools
import random

import soundfile
from fastapi.testclient import TestClient
from PIL import Image
from redis import Redis

from app.main import create_app
from clipsynth.jobs.queue import get_queue
from clipsynth.jobs.store import JobStore
from clipsynth.storage import Storage
from models.retrieval.clip_audio import open_audio
from worker.engine import Engine
from worker.job_runner import JobRunner
from worker.main import model_info, sounds_of
from worker.predictor import Predictor
from worker.rq_adapter.worker import BatchWorker
from worker.understanding.answers import Understander

_IMAGES = itertools.count()  # each is another


def image(fmt, size=(80, 60)):
    file = io.BytesIO()
    pixels = random.Random(next(_IMAGES)).randbytes(3 * size[0] * size[1])
    Image.frombytes("RGB", size, pixels).save(file, fmt)
    return file.getvalue()


class Service:
    """An API client, and a worker that runs the queued jobs on demand."""

    def __init__(self, settings, pipeline):
        self.client = TestClient(
            create_app(settings), base_url="http://localhost", raise_server_exceptions=False
        )
        self.redis = Redis.from_url(settings.redis_url)
        self.state = JobStore(self.redis, result_ttl_s=settings.result_ttl_s)
        folder = settings.retrieval_audio
        self.predictor = Predictor(pipeline, folder and open_audio(folder, 16000))
        self.storage = Storage(settings.results_url)
        runner = JobRunner(self.predictor, self.state, self.storage, max_attempts=settings.max_attempts)
        self.queue = get_queue("tiny", self.redis)
        self.engine = Engine(self.predictor, limit=1000)
        self.engine.start()
        self.worker = BatchWorker(
            self.queue,
            redis_url=settings.redis_url,
            lease_s=15,
            heartbeat_s=5,
            runner=runner,
            engine=self.engine,
        )
        offered = ["diffusion", "retrieval"] if self.predictor.retrieves else ["diffusion"]
        info = model_info(pipeline.manifest, pipeline.condition_encoder.config.scalars, offered)
        self.info = info.model_copy(update={"sounds": sounds_of(self.predictor)})
        self.understander = Understander(runner)
        if self.info.sounds:
            self.understander.start()
        self.state.announce(self.info)

    def close(self):
        self.understander.stop()
        self.engine.stop()
        self.worker.leases.stop()
        self.redis.close()

    def post(self, body=None, **kwargs):
        return self.client.post("/v1/generations", **({"json": body} if body is not None else {}), **kwargs)

    def finish(self, response):
        assert response.status_code == 202, response.text
        self.worker.work(burst=True, logging_level="ERROR")
        return self.client.get(response.headers["location"]).json()

    def wav(self, response, n=0):
        done = self.finish(response)
        assert done["status"] == "succeeded", done
        return self.client.get(done["outputs"][n]["url"]).content


def serving(settings, pipeline):
    with Redis.from_url(settings.redis_url) as redis:
        redis.flushall()
    service = Service(settings, pipeline)
    with service.client:
        yield service
    service.close()


SHORT = {"duration_s": 0.5, "num_inference_steps": 2}


def samples(wav):
    return soundfile.read(io.BytesIO(wav))[0]


def check_problem(response, status, code):
    assert response.headers["content-type"] == "application/problem+json"
    assert (response.status_code, response.json()["code"]) == (status, code), response.text
