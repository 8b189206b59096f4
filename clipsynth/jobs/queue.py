"""The queue: RQ as transport. JSON only, and no function name is ever taken from Redis."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import cast

from redis import Redis
from redis.client import Pipeline
from rq import Queue, Retry
from rq.job import Job
from rq.serializers import JSONSerializer

from clipsynth.admission.estimate import passes
from clipsynth.admission.fair_queue import take_turn
from clipsynth.admission.limits import Reservation
from clipsynth.jobs.record import client_notes
from clipsynth.jobs.store import JobStore
from clipsynth.log import REQUEST_ID
from clipsynth.schemas.generation import Generation, JobPayload, Webhook
from clipsynth.security.api_keys import ANONYMOUS
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
    state: JobStore,
    generation_id: str,
    payload: JobPayload,
    settings: Settings,
    *,
    owner: str = ANONYMOUS.id,
    hold: Reservation | None = None,
    webhook: Webhook | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Generation:
    """Create a generation and put its job, of the same id, on its model's queue, both or neither; return it as it is then.

    RQ tries again as often as it likes: how often a job may be lost with its worker is decided by the public state.
    """
    queue = get_queue(payload.model, redis)
    job = _job(queue, generation_id, payload, settings)
    with redis.pipeline() as pipeline:
        queue.enqueue_job(job, pipeline=pipeline)  # first: it opens the MULTI
        notes = client_notes(webhook, metadata)
        generation = state.create(generation_id, payload, pipeline, owner=owner, hold=hold, notes=notes)
        work = hold.work if hold else passes(payload, None)
        take_turn(pipeline, model=payload.model, generation_id=generation_id, owner=owner, work=work)
        pipeline.lpos(queue.key, generation_id)
        generation.queue_position = pipeline.execute()[-1]
    generation.eta_s = hold.eta_s if hold else None
    return generation


def _job(queue: Queue, generation_id: str, payload: JobPayload, settings: Settings) -> Job:
    return queue.create_job(
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


def put_back(
    state: JobStore, generation_id: str, payload: JobPayload, settings: Settings, pipeline: Pipeline
) -> None:
    """Queue the commands that make a job anew, first on its queue, for a generation that has none. The pipeline has to be in its MULTI."""
    queue = get_queue(payload.model, state.redis)
    queue.enqueue_job(_job(queue, generation_id, payload, settings), pipeline=pipeline, at_front=True)
    state.put_back(generation_id, pipeline)


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
