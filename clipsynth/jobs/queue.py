"""The queue: RQ as transport. JSON only, and no function name is ever taken from Redis."""

from __future__ import annotations

from collections.abc import Collection
from typing import cast

from redis import Redis
from redis.client import Pipeline
from rq import Queue, Retry
from rq.job import Job
from rq.serializers import JSONSerializer

from clipsynth.log import REQUEST_ID
from clipsynth.schemas.request import JobPayload
from clipsynth.settings import Settings

FUNC_NAME = "clipsynth.generate"  # a label; the worker has one function and never resolves this
RQ_TTL_S = 60  # of its records after the end; 0 would make it fail on a job that was given up before
RQ_RETRIES = 1000


def connect(redis_url: str) -> Redis:
    """Return a client for requests: it fails within 5 s rather than hang."""
    return Redis.from_url(redis_url, socket_timeout=5, socket_connect_timeout=5)


def get_queue(model: str, redis: Redis) -> Queue:
    """Return the queue of a bundle."""
    return Queue(f"clipsynth-{model}", connection=redis, serializer=JSONSerializer)


def enqueue(
    redis: Redis,
    generation_id: str,
    payload: JobPayload,
    settings: Settings,
    pipeline: Pipeline,
    *,
    at_front: bool = False,
) -> str:
    """Queue the commands that put a job on its model's queue, and the pipeline's MULTI; return the queue's key.

    RQ retries without limit: the public state decides how often a job may be lost with its worker.
    """
    queue = Queue(f"clipsynth-{payload.model}", connection=redis, serializer=JSONSerializer)
    job = queue.create_job(
        FUNC_NAME,
        args=(generation_id, payload.model_dump(mode="json")),
        description=FUNC_NAME,  # by default RQ's description shows the arguments, and with them the prompt
        job_id=generation_id,
        timeout=settings.job_timeout_s,
        result_ttl=RQ_TTL_S,
        failure_ttl=RQ_TTL_S,
        meta={"request_id": request_id} if (request_id := REQUEST_ID.get()) else None,
        retry=Retry(max=RQ_RETRIES, enqueue_at_front=True),  # it has had its turn already
    )
    queue.enqueue_job(job, pipeline=pipeline, at_front=at_front)
    return str(queue.key)


def is_queued(redis: Redis, models: Collection[str]) -> set[str]:
    """Return the ids of all jobs that these models' queues know of at one moment: those that wait, were taken, or are leased."""
    with redis.pipeline() as pipeline:
        for queue in (get_queue(model, redis) for model in models):
            pipeline.lrange(queue.key, 0, -1)
            pipeline.lrange(queue.intermediate_queue_key, 0, -1)
            pipeline.zrange(f"rq:wip:{queue.name}", 0, -1)
        found = cast(list[list[bytes]], pipeline.execute())
    return {entry.decode().partition(":")[0] for entries in found for entry in entries}


def withdraw(redis: Redis, generation_id: str, model: str) -> None:
    """Take a job off the queue, if it is still there; a worker that has taken it finds its generation ended."""
    if get_queue(model, redis).remove(generation_id):
        redis.delete(Job.key_for(generation_id))
