"""The queue: RQ as transport. JSON only, and no function name is ever taken from Redis."""

from __future__ import annotations

from redis import Redis
from rq import Queue, Retry
from rq.serializers import JSONSerializer

from clipsynth.schemas import JobPayload
from clipsynth.settings import Settings

FUNC_NAME = "clipsynth.generate"  # a label; the worker has one function and never resolves this


def connect(redis_url: str) -> Redis:
    """Return a client for requests: it fails within 5 s rather than hang."""
    return Redis.from_url(redis_url, socket_timeout=5, socket_connect_timeout=5)


def get_queue(model: str, redis: Redis) -> Queue:
    """Return the queue of a bundle."""
    return Queue(f"clipsynth-{model}", connection=redis, serializer=JSONSerializer)


def enqueue(redis: Redis, generation_id: str, payload: JobPayload, settings: Settings) -> None:
    """Put a job on its model's queue; its id is the generation's."""
    get_queue(payload.model, redis).enqueue_call(
        FUNC_NAME,
        args=(generation_id, payload.model_dump(mode="json")),
        job_id=generation_id,
        timeout=settings.job_timeout_s,
        result_ttl=60,
        failure_ttl=settings.result_ttl_s,
        retry=Retry(max=settings.max_attempts - 1),
    )
