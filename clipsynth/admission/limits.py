"""Who gets onto the queue: bounds of a model's queue, each API key's share of it, its rate, and its jobs at a time.

`clipsynth:load:{model}` has the number `n` of unfinished generations and their work `w` (seconds of sound times network passes), in all and per
owner (`n:{owner}`). Room is taken before a generation is created, as a hold, and given back when it ends, in the same script.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from functools import cached_property
from typing import cast

from redis import Redis

from clipsynth.errors import QueueFull, RateLimited
from clipsynth.schemas.generation import ModelCost
from clipsynth.settings import Settings

RESERVATIONS_KEY = "clipsynth:holds"  # sorted set: room taken for what is not created yet, by time
INFLIGHT_KEY = "clipsynth:inflight"  # hash: unfinished generations by owner
RESERVATION_S = 120.0  # after which room is given back: its request was cut off
UNKNOWN_S = 5.0  # Retry-After while no worker has measured its cost
MAX_RETRY_S = 3600.0

# A Lua function that other scripts begin with: gives back the room of one generation.
RELEASE = """
local function release(owner, model, work)
  local load = 'clipsynth:load:' .. model
  for _, of in ipairs({'', ':' .. owner}) do
    if redis.call('HINCRBY', load, 'n' .. of, -1) <= 0 then
      redis.call('HDEL', load, 'n' .. of, 'w' .. of)
    else
      redis.call('HINCRBYFLOAT', load, 'w' .. of, '-' .. work)
    end
  end
  if redis.call('HINCRBY', 'clipsynth:inflight', owner, -1) <= 0 then redis.call('HDEL', 'clipsynth:inflight', owner) end
end
"""
# KEYS[1] holds; ARGV[1] member.
_RELEASE_HOLD = (
    RELEASE
    + """
if redis.call('ZREM', KEYS[1], ARGV[1]) == 1 then
  local _, owner, model, work = string.match(ARGV[1], '^(%S+) (%S+) (%S+) (%S+)$')
  release(owner, model, work)
end
"""
)
# KEYS: load, in flight, bucket, holds, record. ARGV: owner, work, most jobs, most work (0: any), tokens per second (0: any), most tokens,
# most in flight (0: any), member. Answers what refuses (or "ok", or "held" where it was admitted before) and a number as text.
_ADMIT = """
local function number(value) return tonumber(value or '0') end
local owner, work, max_n, max_w = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local rate, burst, max_inflight = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
if redis.call('ZSCORE', KEYS[4], ARGV[8]) or redis.call('EXISTS', KEYS[5]) == 1 then return {'held', '0'} end
local load = redis.call('HMGET', KEYS[1], 'n', 'w', 'n:' .. owner, 'w:' .. owner)
local n, w, own_n, own_w = number(load[1]), number(load[2]), number(load[3]), number(load[4])
if max_inflight > 0 and number(redis.call('HGET', KEYS[2], owner)) >= max_inflight then
  return {'inflight', tostring(own_n > 0 and w / own_n or 0)}
end
if n > 0 and (n + 1 > max_n or (max_w > 0 and w + work > max_w)) then
  return {'full', tostring(math.max(w / n, max_w > 0 and w + work - max_w or 0))}
end
if own_n > 0 then  -- with k owners each may fill one part in k + 1: there is room for one more to come
  local parts = (redis.call('HLEN', KEYS[1]) - 2) / 2 + 1
  if own_n + 1 > max_n / parts or (max_w > 0 and own_w + work > max_w / parts) then
    return {'share', tostring(w / own_n)}
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
for _, of in ipairs({'', ':' .. owner}) do
  redis.call('HINCRBY', KEYS[1], 'n' .. of, 1)
  redis.call('HINCRBYFLOAT', KEYS[1], 'w' .. of, ARGV[2])
end
redis.call('HINCRBY', KEYS[2], owner, 1)
redis.call('ZADD', KEYS[4], string.format('%.6f', now), ARGV[8])
return {'ok', '0'}
"""


@dataclass(frozen=True)
class Reservation:
    """A place in a model's queue for one generation, until it is created or `release_reservation` frees it.

    Attributes:
        work: of the request, in seconds of sound times passes of the network.
        eta_s: estimated seconds to its end, as the client was informed.
        member: its entry in the sorted set of reservations.
    """

    generation_id: str
    owner: str
    model: str
    work: float
    eta_s: float | None = None

    @cached_property
    def member(self) -> str:
        return f"{self.generation_id} {self.owner} {self.model} {self.work:.6f}"


def admit(redis: Redis, hold: Reservation, settings: Settings, cost: ModelCost | None) -> bool:
    """Take room for a generation; False where its id has room already: another request is about it.

    Raises:
        RateLimited: the owner asks too often, or has too many unfinished. QueueFull: the queue is, or its owner's share of it.
    """
    max_work = settings.max_backlog_s / cost.audio_step_s if cost else 0.0
    verdict, number = redis.register_script(_ADMIT)(
        keys=[
            f"clipsynth:load:{hold.model}",
            INFLIGHT_KEY,
            f"clipsynth:bucket:{hold.owner}",
            RESERVATIONS_KEY,
            f"clipsynth:gen:{hold.generation_id}",
        ],
        args=[
            hold.owner,
            f"{hold.work:.6f}",
            settings.max_queued,
            max_work,
            settings.rate_per_s,
            max(1.0, settings.rate_burst),
            settings.max_inflight,
            hold.member,
        ],
    )
    word = verdict.decode()
    if word in ("ok", "held"):
        return bool(word == "ok")
    if word == "rate":
        raise RateLimited("this API key asks too often", retry_after_s=min(float(number), MAX_RETRY_S))
    seconds = float(number) * cost.audio_step_s if cost else UNKNOWN_S
    retry_after_s = min(max(1.0, seconds), MAX_RETRY_S)
    if word == "inflight":
        detail = f"this API key has {settings.max_inflight} unfinished generations"
        raise RateLimited(detail, retry_after_s=retry_after_s)
    whose = "this API key's share of the queue" if word == "share" else "the queue"
    raise QueueFull(f"{whose} of model {hold.model} is full", retry_after_s=retry_after_s)


def release_reservation(redis: Redis, hold: Reservation) -> None:
    """Give back the room of a generation that was not created."""
    redis.register_script(_RELEASE_HOLD)(keys=[RESERVATIONS_KEY], args=[hold.member])


def release_stale_reservations(redis: Redis) -> int:
    """Give back the room of requests that were cut off, and return how many those were."""
    members = cast(
        list[bytes], redis.zrange(RESERVATIONS_KEY, "-inf", repr(time.time() - RESERVATION_S), byscore=True)
    )
    for member in members:
        redis.register_script(_RELEASE_HOLD)(keys=[RESERVATIONS_KEY], args=[member])
    return len(members)


def load(redis: Redis, model: str) -> tuple[int, float]:
    """Return the unfinished generations of a model and their work."""
    n, work = cast(list[bytes | None], redis.hmget(f"clipsynth:load:{model}", ["n", "w"]))
    value = float(work or 0)
    return int(n or 0), value if math.isfinite(value) else 0.0
