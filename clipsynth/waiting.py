"""How long a queued generation will wait: its place in the queue, and an estimate by what its worker measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from redis import Redis

from clipsynth.schemas import JobPayload, ModelCost, ModelInfo

SAMPLED = 32  # jobs ahead whose requests are read; the others are taken to be like them


def work(payload: JobPayload, cost: ModelCost) -> float:
    """Return the seconds that a worker with a full batch spends on a request."""
    passes = 1 + cost.guided_share if payload.guidance_scale > 1 else 1.0
    rows = payload.num_outputs * payload.num_inference_steps * passes
    return rows * payload.duration_s * cost.audio_step_s


def place(
    redis: Redis, generation_id: str, payload: JobPayload, record_key: Callable[[str], str]
) -> tuple[int | None, float | None]:
    """Return how many jobs are before this one in the queue, and in how many seconds it should end.

    The estimate is for one worker that takes the running jobs for half done; None where no worker has measured its cost. The place is None
    for a job that a worker is just taking.
    """
    queue = f"clipsynth-{payload.model}"
    with redis.pipeline(transaction=False) as pipeline:
        pipeline.lpos(f"rq:queue:{queue}", generation_id)
        pipeline.lrange(f"rq:queue:{queue}", 0, SAMPLED - 1)
        pipeline.zrange(f"rq:wip:{queue}", 0, SAMPLED - 1)
        pipeline.get(f"clipsynth:model:{payload.model}")
        position, head, running, info = pipeline.execute()
    if position is None:
        return None, None
    cost = ModelInfo.model_validate_json(info).cost if info else None
    if cost is None:
        return position, None
    ahead = [i.decode() for i in head[:position]]
    running = [i.decode().partition(":")[0] for i in running]
    with redis.pipeline(transaction=False) as pipeline:
        for other in (*ahead, *running):
            pipeline.hget(record_key(other), "input")
        inputs = cast(list[bytes | None], pipeline.execute())
    works = [work(JobPayload.model_validate_json(i), cost) if i else 0.0 for i in inputs]
    before = sum(works[: len(ahead)]) * position / max(1, len(ahead)) + sum(works[len(ahead) :]) / 2
    return position, before + max(work(payload, cost), payload.num_inference_steps * cost.step_s)
