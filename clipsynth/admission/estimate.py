"""How long a queued generation will wait: its place in the queue, and an estimate by what its worker measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from redis import Redis

from clipsynth.redis_keys import RECORD_PREFIX
from clipsynth.schemas.generation import ModelCost, ModelInfo
from clipsynth.schemas.request import JobPayload

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


def seconds_to_end(ahead: float, workers: int, work: float, steps: int, cost: ModelCost) -> float:
    """Return the seconds until a job ends: the only formula of every estimate.

    Args:
        ahead: work before it, in seconds of sound times passes of the network.
        workers: of its model.
        work: its own.
        steps: its denoising steps; 0 for retrieval.
    """
    own_s = max(work * cost.audio_step_s, steps * cost.step_s)
    return ahead * cost.audio_step_s / max(1, workers) + own_s


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
    work: float,
    cost: ModelCost | None,
    *,
    owner: str,
    reserved: bool = False,
    corrected: bool = True,
) -> Forecast:
    """Estimate when a request would end; running jobs count half.

    Args:
        work: of the request.
        reserved: whether the queue's work already contains the request.
        corrected: whether to correct by the real times of earlier jobs.
    """
    keys = [f"clipsynth:load:{payload.model}", f"rq:wip:clipsynth-{payload.model}"]
    keys += [f"clipsynth:eta_ratios:{payload.model}", f"rq:workers:clipsynth-{payload.model}"]
    found = redis.register_script(_FORECAST)(keys=keys, args=[RECORD_PREFIX, -1 if corrected else 0])
    load, running = ({name.decode(): float(value) for name, value in pairs} for pairs in found[:2])
    ratios, workers = found[2:]
    unfinished = int(load.get("n", 0))
    if cost is None:
        return Forecast(unfinished, None)
    if reserved:
        load[f"w:{owner}"] = max(0.0, load.get(f"w:{owner}", 0.0) - work)
    steps = 0 if payload.method == "retrieval" else payload.num_inference_steps
    base_s = seconds_to_end(_ahead(load, running, owner), workers, work, steps, cost)
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
    """Return the number of jobs before this one in the queue, and the seconds until it ends.

    Reads the `work` of up to 2 * `SAMPLED` other records, no payload. The position is None while a worker claims the
    job; the seconds are None until a worker has measured its cost.
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
    claimed = [i.decode().partition(":")[0] for i in running]
    with redis.pipeline(transaction=False) as pipeline:
        for other in (*ahead, *claimed):
            pipeline.hget(RECORD_PREFIX + other, "work")
        works = [float(work or 0) for work in cast(list[bytes | None], pipeline.execute())]
    before = sum(works[: len(ahead)]) * position / max(1, len(ahead)) + sum(works[len(ahead) :]) / 2
    steps = 0 if payload.method == "retrieval" else payload.num_inference_steps
    work = payload.work(cost.distilled_guidance_range, cost.guided_share)
    return position, seconds_to_end(before, workers, work, steps, cost)
