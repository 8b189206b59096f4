"""Admission of generations: limits of a queue and of each API key, and time estimates.

A request reserves its place before its generation is created. The same script that ends a generation releases
the place. Work is counted in network passes times seconds of sound (`JobPayload.work`).
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

from redis import Redis

from clipsynth.errors import DeadlineUnreachable, QueueFull, RateLimited
from clipsynth.redis_keys import (
    BUCKET,
    ETA_RATIOS,
    INFLIGHT,
    LOAD,
    MODEL,
    QUEUE,
    RECORD,
    RESERVATIONS,
    RUNNING,
    WORKERS,
    lua_names,
)
from clipsynth.schemas.model_info import ModelCost
from clipsynth.settings import Settings

# Seconds after which the reservation of a request that was cut off is released.
RESERVATION_S = 120.0
# Retry-After until a worker has measured its cost.
UNKNOWN_S = 5.0
MAX_RETRY_S = 3600.0
# Running jobs that an estimate reads.
MAX_RUNNING = 256
# Ended generations from which on estimates are corrected by their actual durations.
MIN_RATIOS = 20

# A Lua function for other scripts: release the place of one generation.
RELEASE = (
    lua_names("LOAD", "INFLIGHT")
    + """
local function release(owner, model, work)
  local load = LOAD .. model
  for _, suffix in ipairs({'', ':' .. owner}) do
    if redis.call('HINCRBY', load, 'n' .. suffix, -1) <= 0 then
      redis.call('HDEL', load, 'n' .. suffix, 'w' .. suffix)
    else
      redis.call('HINCRBYFLOAT', load, 'w' .. suffix, '-' .. work)
    end
  end
  if redis.call('HINCRBY', INFLIGHT, owner, -1) <= 0 then redis.call('HDEL', INFLIGHT, owner) end
end
"""
)
_RELEASE_RESERVATION = (
    RELEASE
    + """
-- KEYS: 1 reservations. ARGV: 1 the reservation, "id owner model work".
if redis.call('ZREM', KEYS[1], ARGV[1]) == 1 then
  local _, owner, model, work = string.match(ARGV[1], '^(%S+) (%S+) (%S+) (%S+)$')
  release(owner, model, work)
end
"""
)
_ADMIT = """
-- KEYS: 1 load of the model, 2 unfinished by owner, 3 token bucket, 4 reservations, 5 record.
-- ARGV: 1 owner, 2 work, 3 most jobs, 4 most work (0: no limit), 5 tokens per second (0: no limit),
--   6 most tokens, 7 most unfinished of an owner (0: no limit), 8 reservation.
-- Returns 'ok', 'reserved' if the id already has a place, or the limit that refuses the request;
-- and a number as text: seconds for 'rate', work for the others.
local function number(value) return tonumber(value or '0') end
local owner, work, max_jobs, max_work = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local rate, burst, max_unfinished = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local is_known = redis.call('ZSCORE', KEYS[4], ARGV[8]) or redis.call('EXISTS', KEYS[5]) == 1
if is_known then return {'reserved', '0'} end

local load = redis.call('HMGET', KEYS[1], 'n', 'w', 'n:' .. owner, 'w:' .. owner)
local jobs, total, own_jobs, own_work = number(load[1]), number(load[2]), number(load[3]), number(load[4])
if max_unfinished > 0 and number(redis.call('HGET', KEYS[2], owner)) >= max_unfinished then
  return {'inflight', tostring(own_jobs > 0 and total / own_jobs or 0)}
end
if jobs > 0 and (jobs + 1 > max_jobs or (max_work > 0 and total + work > max_work)) then
  return {'full', tostring(math.max(total / jobs, max_work > 0 and total + work - max_work or 0))}
end
if own_jobs > 0 then
  -- Each of k owners may use one part in k + 1 of the queue, so that one more owner has room.
  local parts = (redis.call('HLEN', KEYS[1]) - 2) / 2 + 1
  if own_jobs + 1 > max_jobs / parts or (max_work > 0 and own_work + work > max_work / parts) then
    return {'share', tostring(total / own_jobs)}
  end
end

local clock = redis.call('TIME')
local now = clock[1] + clock[2] / 1000000
if rate > 0 then
  local bucket = redis.call('HMGET', KEYS[3], 'tokens', 'at')
  local tokens = burst
  if bucket[1] then tokens = math.min(burst, bucket[1] + math.max(0, now - bucket[2]) * rate) end
  if tokens < 1 then return {'rate', tostring((1 - tokens) / rate)} end
  redis.call('HSET', KEYS[3], 'tokens', tostring(tokens - 1), 'at', string.format('%.6f', now))
  redis.call('EXPIRE', KEYS[3], math.ceil(burst / rate) + 1)
end

for _, suffix in ipairs({'', ':' .. owner}) do
  redis.call('HINCRBY', KEYS[1], 'n' .. suffix, 1)
  redis.call('HINCRBYFLOAT', KEYS[1], 'w' .. suffix, ARGV[2])
end
redis.call('HINCRBY', KEYS[2], owner, 1)
redis.call('ZADD', KEYS[4], string.format('%.6f', now), ARGV[8])
return {'ok', '0'}
"""
_READ_LOAD = (
    lua_names("RECORD")
    + """
-- KEYS: 1 load of the model, 2 running jobs, 3 ratios of actual by estimated duration, 4 workers, 5 model,
--   6 queue.
-- ARGV: 1 most running jobs to read, 2 index of the last ratio (-1: all, 0: none), 3 id of a queued
--   generation or ''.
-- Returns the load and the running work by owner, each as a list of pairs, the ratios, the number of workers;
-- and for an id also the description of the model ('' if unknown), the jobs before it (-1 if it is not in the
-- queue), and its owner, work and turn, and the turn of the first job in the queue.
local load, by_owner, running = {}, {}, {}
local values = redis.call('HGETALL', KEYS[1])
for n = 1, #values, 2 do table.insert(load, {values[n], values[n + 1]}) end
for _, execution in ipairs(redis.call('ZRANGE', KEYS[2], 0, ARGV[1] - 1)) do
  local job = redis.call('HMGET', RECORD .. string.match(execution, '^[^:]*'), 'owner', 'work')
  if job[1] and job[2] then by_owner[job[1]] = (by_owner[job[1]] or 0) + job[2] end
end
for owner, work in pairs(by_owner) do table.insert(running, {owner, string.format('%.6f', work)}) end
local ratios = ARGV[2] == '0' and {} or redis.call('LRANGE', KEYS[3], 0, ARGV[2])
local found = {load, running, ratios, redis.call('SCARD', KEYS[4])}
if ARGV[3] == '' then return found end

local first = redis.call('LINDEX', KEYS[6], 0)
local job = redis.call('HMGET', RECORD .. ARGV[3], 'owner', 'work', 'turn')
table.insert(found, redis.call('GET', KEYS[5]) or '')
table.insert(found, redis.call('LPOS', KEYS[6], ARGV[3]) or -1)
table.insert(found, job[1] or '')
table.insert(found, job[2] or '')
table.insert(found, job[3] or '0')
table.insert(found, first and redis.call('HGET', RECORD .. first, 'turn') or '0')
return found
"""
)


@dataclass
class Reservation:
    """A place for one generation, until the generation is created or `release_reservation` releases it.

    `reserve` sets `eta_s`, the estimated seconds until its end.
    """

    generation_id: str
    owner: str
    model: str
    work: float
    eta_s: float | None = None

    @cached_property
    def member(self) -> str:
        """Member of the sorted set of reservations."""
        return f"{self.generation_id} {self.owner} {self.model} {self.work:.6f}"


def reserve(
    redis: Redis,
    reservation: Reservation,
    settings: Settings,
    cost: ModelCost | None,
    steps: int,
    deadline_s: float | None,
) -> bool:
    """Reserve a place and estimate the end; return False if the generation id already has a place.

    Raises:
        RateLimited, QueueFull: as `admit`.
        DeadlineUnreachable: the estimated end is after the deadline.
    """
    if not admit(redis, reservation, settings, cost):
        return False
    expected = forecast(redis, reservation, cost, steps, reserved=True, corrected=deadline_s is not None)
    if deadline_s and expected.p50_s and deadline_s < expected.p50_s:
        release_reservation(redis, reservation)
        raise DeadlineUnreachable(f"/deadline_s: it would take about {expected.p50_s:.1f} s")
    reservation.eta_s = expected.base_s
    return True


def admit(redis: Redis, reservation: Reservation, settings: Settings, cost: ModelCost | None) -> bool:
    """Reserve a place; return False if another request has one for the same generation id.

    Raises:
        RateLimited: the owner sends too many requests, or has too many unfinished generations.
        QueueFull: the queue or the owner's share of it is full.
    """
    owner, model = reservation.owner, reservation.model
    max_work = settings.max_backlog_s / cost.audio_step_s if cost else 0.0
    keys = [LOAD + model, INFLIGHT, BUCKET + owner, RESERVATIONS, RECORD + reservation.generation_id]
    rates = (settings.rate_per_s, max(1.0, settings.rate_burst))
    limits = (settings.max_queued, max_work, *rates, settings.max_inflight)
    args: list[Any] = [owner, f"{reservation.work:.6f}", *limits, reservation.member]
    raw_verdict, number = redis.register_script(_ADMIT)(keys=keys, args=args)
    verdict = raw_verdict.decode()
    if verdict in ("ok", "reserved"):
        return bool(verdict == "ok")
    if verdict == "rate":
        detail = "this API key sends too many requests"
        raise RateLimited(detail, retry_after_s=min(float(number), MAX_RETRY_S))
    seconds = float(number) * cost.audio_step_s if cost else UNKNOWN_S
    retry_after_s = min(max(1.0, seconds), MAX_RETRY_S)
    if verdict == "inflight":
        detail = f"this API key has {settings.max_inflight} unfinished generations"
        raise RateLimited(detail, retry_after_s=retry_after_s)
    subject = "this API key's share of the queue" if verdict == "share" else "the queue"
    raise QueueFull(f"{subject} of model {model} is full", retry_after_s=retry_after_s)


def release_reservation(redis: Redis, reservation: Reservation) -> None:
    """Release the place of a generation that was not created."""
    redis.register_script(_RELEASE_RESERVATION)(keys=[RESERVATIONS], args=[reservation.member])


def release_stale_reservations(redis: Redis) -> int:
    """Release the places of requests that were cut off; return their number."""
    oldest = repr(time.time() - RESERVATION_S)
    members = cast(list[bytes], redis.zrange(RESERVATIONS, "-inf", oldest, byscore=True))
    for member in members:
        redis.register_script(_RELEASE_RESERVATION)(keys=[RESERVATIONS], args=[member])
    return len(members)


def load(redis: Redis, model: str) -> tuple[int, float]:
    """Return the number of unfinished generations of a model, and their work."""
    n, work = cast(list[bytes | None], redis.hmget(LOAD + model, ["n", "w"]))
    value = float(work or 0)
    return int(n or 0), value if math.isfinite(value) else 0.0


@dataclass(frozen=True)
class Forecast:
    """Estimated seconds until the end of a new request; None until a worker has measured its cost.

    `base_s` comes from cost and queue; the quantiles are corrected by the durations of earlier generations.
    """

    unfinished: int
    base_s: float | None
    p50_s: float | None = None
    p90_s: float | None = None


def forecast(
    redis: Redis,
    request: Reservation,
    cost: ModelCost | None,
    steps: int,
    *,
    reserved: bool = False,
    corrected: bool = True,
) -> Forecast:
    """Estimate the end of a request that comes now.

    Args:
        steps: denoising steps of the request.
        reserved: whether the request has its place; then the load contains its work.
        corrected: whether to read the durations of earlier generations.
    """
    queue = _Queue(*_read_load(redis, request.model, last_ratio=-1 if corrected else 0)[:4])
    unfinished = int(queue.load.get("n", 0))
    if cost is None:
        return Forecast(unfinished, None)
    own = queue.load.get(f"w:{request.owner}", 0.0) - (request.work if reserved else 0.0)
    base_s = queue.eta_s(request.owner, max(0.0, own), request.work, cost, steps)
    ratios = queue.ratios
    p50, p90 = (1.0, 1.5) if len(ratios) < MIN_RATIOS else (ratios[int(q * len(ratios))] for q in (0.5, 0.9))
    return Forecast(unfinished, base_s, base_s * p50, base_s * p90)


def place(redis: Redis, generation_id: str, model: str, *, steps: int) -> tuple[int | None, float | None]:
    """Return the number of jobs before a queued one, and the estimated seconds until its end.

    The estimate is None until a worker has measured its cost. Both are None while a worker claims the job.
    """
    *found, info, position, owner, work, turn, first_turn = _read_load(redis, model, generation_id)
    if position < 0:
        return None, None
    cost = json.loads(info).get("cost") if info else None
    if not cost or not work:
        return position, None
    queue, name, own_work = _Queue(*found), owner.decode(), float(work)
    # An owner's jobs follow each other in virtual time, so the distance of turns is the queued work before.
    own = queue.running.get(name, 0.0) + max(0.0, float(turn) - float(first_turn))
    own = min(own, max(0.0, queue.load.get(f"w:{name}", 0.0) - own_work))
    return position, queue.eta_s(name, own, own_work, ModelCost.model_validate(cost), steps)


def _read_load(redis: Redis, model: str, generation_id: str = "", *, last_ratio: int = 0) -> Any:
    keys = [prefix + model for prefix in (LOAD, RUNNING, ETA_RATIOS, WORKERS, MODEL, QUEUE)]
    return redis.register_script(_READ_LOAD)(keys=keys, args=[MAX_RUNNING, last_ratio, generation_id])


class _Queue:
    """Load of a model, for estimates. Running jobs count half."""

    def __init__(self, load: Any, running: Any, ratios: list[bytes], workers: int) -> None:
        self.load, self.running = (
            {name.decode(): float(value) for name, value in pairs} for pairs in (load, running)
        )
        self.ratios, self.workers = sorted(map(float, ratios)), max(1, workers)

    def eta_s(self, owner: str, own: float, work: float, cost: ModelCost, steps: int) -> float:
        """Return the seconds until the end of a job with `own` work of its owner before it."""
        before_s = work_before(self.load, self.running, owner, own) * cost.audio_step_s / self.workers
        own_s = max(work * cost.audio_step_s, steps * cost.step_s) if work else 0.0  # 0 for retrieval
        return before_s + own_s


def work_before(load: Mapping[str, float], running: Mapping[str, float], owner: str, own: float) -> float:
    """Return the work done before a job of `owner`; `own` is the part of its owner.

    Owners share the queue fairly: of another owner's work, at most `own` and one job are done before.
    """
    before = own
    for name, jobs in load.items():
        other = name.removeprefix("n:")
        if name.startswith("n:") and other != owner:
            total = load.get(f"w:{other}", 0.0)
            before += min(total, own + total / max(1.0, jobs) + running.get(other, 0.0))
    return max(0.0, before - sum(running.values()) / 2)
