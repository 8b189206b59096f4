"""Queues: RQ as transport. Jobs are JSON; the worker never resolves a function name from Redis.

Jobs of several API keys are in fair order: start-time fair queueing (Goyal et al. 1996). The jobs of one key
follow each other in virtual time, each as long as its work; a key without queued jobs starts at the head of
the queue. The queue is sorted by these start times, so no key waits for the whole backlog of another one.
With one key, the order is first come, first served.
"""

from __future__ import annotations

from collections.abc import Collection
from copy import copy
from typing import cast

from redis import Redis
from redis.client import Pipeline
from redis.exceptions import RedisError, ResponseError
from rq import Queue, Retry
from rq.job import Job
from rq.serializers import JSONSerializer
from rq.utils import now

from clipsynth.errors import RedisUnavailable
from clipsynth.jobs.scripts import TAKE_TURN
from clipsynth.log import REQUEST_ID
from clipsynth.redis_keys import QUEUE_NAME, RUNNING, TURNS, WRITE_CHECK
from clipsynth.schemas.generation import JobPayload

# A label; the worker has one function and never looks at it.
FUNC_NAME = "clipsynth.generate"
# RQ keeps its record of an ended job for this time. With 0 it would fail on a job that was removed before.
RQ_TTL_S = 60
RQ_RETRIES = 1000
WRITE_CHECK_S = 60


def connect(redis_url: str) -> Redis:
    """Return a client for requests: it fails within 5 s instead of blocking."""
    return Redis.from_url(redis_url, socket_timeout=5, socket_connect_timeout=5)


def check_writes(redis: Redis) -> None:
    """Write a key.

    Raises:
        RedisUnavailable: Redis refuses it, because its memory or disk is full or it is a replica.
    """
    try:
        redis.set(WRITE_CHECK, "1", ex=WRITE_CHECK_S)
    except ResponseError as error:
        raise RedisUnavailable(f"Redis refuses writes: {str(error).partition(' ')[0]}") from error


def is_redis_up(redis: Redis) -> bool:
    """Return whether Redis answers a ping."""
    try:
        return bool(redis.ping())
    except RedisError:
        return False


def get_queue(model: str, redis: Redis) -> Queue:
    """Return the queue of a model."""
    return Queue(f"{QUEUE_NAME}{model}", connection=redis, serializer=JSONSerializer)


class JobPusher:
    """Pushes jobs to the queues of models."""

    def __init__(self, redis: Redis, *, timeout_s: int) -> None:
        self.redis, self.timeout_s = redis, timeout_s
        # By model; a job is a copy, because RQ takes long to make one.
        self._known: dict[str, tuple[Queue, Job]] = {}

    def push(
        self, pipeline: Pipeline, generation_id: str, payload: JobPayload, *, at_front: bool = False
    ) -> Queue:
        """Queue the commands that create RQ's job of a generation and push it; return the RQ queue.

        RQ opens the MULTI. It retries without limit: the record decides how often a job may be lost.
        """
        if payload.model not in self._known:
            queue = get_queue(payload.model, self.redis)
            self._known[payload.model] = (
                queue,
                queue.create_job(
                    FUNC_NAME,
                    description=FUNC_NAME,  # RQ's default shows the arguments, which contain the prompt
                    timeout=self.timeout_s,
                    result_ttl=RQ_TTL_S,
                    failure_ttl=RQ_TTL_S,
                    retry=Retry(max=RQ_RETRIES, enqueue_at_front=True),
                ),
            )
        queue, template = self._known[payload.model]
        job = copy(template)
        job.id, job.created_at = generation_id, now()
        job.args = generation_id, payload.model_dump(mode="json")
        job.meta = {"request_id": request_id} if (request_id := REQUEST_ID.get()) else {}
        queue.enqueue_job(job, pipeline=pipeline, at_front=at_front)
        return queue


def take_turn(pipeline: Pipeline, queue: Queue, generation_id: str, *, owner: str, work: float) -> None:
    """Queue the commands that move the last job to its owner's turn and return its position.

    The record of the generation must exist.
    """
    keys = [queue.key, TURNS + queue.name.removeprefix(QUEUE_NAME)]
    pipeline.eval(TAKE_TURN, len(keys), *keys, generation_id, owner, f"{work:.6f}")
    pipeline.lpos(queue.key, generation_id)


def known_jobs(redis: Redis, models: Collection[str]) -> set[str]:
    """Return the ids of all jobs in the queues of these models: waiting, taken or claimed, at one moment."""
    with redis.pipeline() as pipeline:
        for model in models:
            queue = get_queue(model, redis)
            pipeline.lrange(queue.key, 0, -1)
            pipeline.lrange(queue.intermediate_queue_key, 0, -1)
            pipeline.zrange(RUNNING + model, 0, -1)
        found = cast(list[list[bytes]], pipeline.execute())
    return {entry.decode().partition(":")[0] for entries in found for entry in entries}


def withdraw(redis: Redis, generation_id: str, model: str) -> None:
    """Remove a job from the queue. A worker that has taken it finds its generation ended."""
    if get_queue(model, redis).remove(generation_id):
        redis.delete(Job.key_for(generation_id))
