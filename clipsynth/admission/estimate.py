"""How long a queued generation will wait: its place in the queue, and an estimate by what its worker measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from redis import Redis

from clipsynth.jobs.record import record_key
from clipsynth.schemas.generation import JobPayload, ModelCost, ModelInfo

SAMPLED = 32  # jobs ahead whose requests are read; the others are taken to be like them
MIN_RATIOS = 20  # ended generations, until which an estimate is not corrected by them

# KEYS: load, running jobs, ratios, workers; ARGV[1] what a record's key begins with, ARGV[2] the last of the ratios. Returns the load and the
# owners' running work, each as pairs, the ratios, and how many workers there are. One round trip, and one number for each owner: every request asks.
_FORECAST = """
local load, owners, running = {}, {}, {}
local values = redis.call('HGETALL', KEYS[1])
for n = 1, #values, 2 do table.insert(load, {values[n], values[n + 1]}) end
for _, execution in ipairs(redis.call('ZRANGE', KEYS[2], 0, -1)) do
  local of = redis.call('HMGET', ARGV[1] .. string.match(execution, '^[^:]*'), 'owner', 'work')
  if of[1] and of[2] then owners[of[1]] = (owners[of[1]] or 0) + of[2] end
end
for owner, work in pairs(owners) do table.insert(running, {owner, string.format('%.6f', work)}) end
return {load, running, redis.call('LRANGE', KEYS[3], 0, ARGV[2]), redis.call('SCARD', KEYS[4])}
"""


def workers_key(model: str) -> str:
    """Return the name of RQ's set of the workers on a model's queue; one that was killed is in it for another minute."""
    return f"rq:workers:clipsynth-{model}"


def passes(payload: JobPayload, cost: ModelCost | None) -> float:
    """Return a request's work: seconds of sound times passes of the network; none where training clips are played."""
    if payload.method == "retrieval":
        return 0.0
    conditional, unconditional = payload.branches(cost.distilled_guidance_range if cost else ())
    passes_per_step = conditional + unconditional * (cost.guided_share if cost else 1.0)
    return payload.num_outputs * payload.num_inference_steps * payload.duration_s * passes_per_step


def work(payload: JobPayload, cost: ModelCost) -> float:
    """Return the seconds that a worker with a full batch spends on a request."""
    return passes(payload, cost) * cost.audio_step_s


def own_s(payload: JobPayload, cost: ModelCost) -> float:
    """Return the seconds that a request takes with nothing before it."""
    steps = 0 if payload.method == "retrieval" else payload.num_inference_steps
    return max(work(payload, cost), steps * cost.step_s)


@dataclass(frozen=True)
class Forecast:
    """When a request would end if it came now. `base_s` is by the worker's cost and the queue, None while no worker has measured it."""

    unfinished: int
    base_s: float | None
    p50_s: float | None = None
    p90_s: float | None = None


def forecast(
    redis: Redis,
    payload: JobPayload,
    cost: ModelCost | None,
    *,
    owner: str,
    counted: bool = False,
    corrected: bool = True,
) -> Forecast:
    """Estimate for the workers there are, the running jobs taken for half done, corrected by how long earlier ones took in fact.

    `counted` is whether room was taken for the request: then it is part of the queue's work. Without `corrected`, how long earlier ones took is not read.
    """
    keys = [f"clipsynth:load:{payload.model}", f"rq:wip:clipsynth-{payload.model}"]
    keys += [f"clipsynth:eta_ratios:{payload.model}", workers_key(payload.model)]
    found = redis.register_script(_FORECAST)(keys=keys, args=[record_key(""), -1 if corrected else 0])
    load, running = ({name.decode(): float(value) for name, value in pairs} for pairs in found[:2])
    ratios, workers = found[2:]
    unfinished = int(load.get("n", 0))
    if cost is None:
        return Forecast(unfinished, None)
    if counted:
        load[f"w:{owner}"] = max(0.0, load.get(f"w:{owner}", 0.0) - passes(payload, cost))
    ahead_s = _ahead(load, running, owner) * cost.audio_step_s / max(1, workers)
    base_s = ahead_s + own_s(payload, cost)
    known = sorted(map(float, ratios))
    p50, p90 = (1.0, 1.5) if len(known) < MIN_RATIOS else (known[int(q * len(known))] for q in (0.5, 0.9))
    return Forecast(unfinished, base_s, base_s * p50, base_s * p90)


def _ahead(load: Mapping[str, float], running: Mapping[str, float], owner: str) -> float:
    """Return the work before an owner's next job. Owners take turns (`clipsynth.turns`): of another's no more than one's own and a job."""
    own = load.get(f"w:{owner}", 0.0)
    ahead = own
    for name, jobs in load.items():
        other = name.removeprefix("n:")
        if name.startswith("n:") and other != owner:
            all_of_it = load.get(f"w:{other}", 0.0)
            ahead += min(all_of_it, own + all_of_it / max(1.0, jobs) + running.get(other, 0.0))
    return max(0.0, ahead - sum(running.values()) / 2)


def place(redis: Redis, generation_id: str, payload: JobPayload) -> tuple[int | None, float | None]:
    """Return how many jobs are before this one in the queue, and in how many seconds it should end.

    The estimate is for the workers there are, the running jobs taken for half done; None where none has measured its cost. The place is None
    for a job that a worker is just taking.
    """
    queue = f"clipsynth-{payload.model}"
    with redis.pipeline(transaction=False) as pipeline:
        pipeline.lpos(f"rq:queue:{queue}", generation_id)
        pipeline.lrange(f"rq:queue:{queue}", 0, SAMPLED - 1)
        pipeline.zrange(f"rq:wip:{queue}", 0, SAMPLED - 1)
        pipeline.get(f"clipsynth:model:{payload.model}")
        pipeline.scard(workers_key(payload.model))
        position, head, running, info, workers = pipeline.execute()
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
    works = [work(JobPayload.known(i), cost) if i else 0.0 for i in inputs]
    before = sum(works[: len(ahead)]) * position / max(1, len(ahead)) + sum(works[len(ahead) :]) / 2
    return position, before / max(1, workers) + own_s(payload, cost)
