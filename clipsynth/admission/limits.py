"""Reserve a place within the limits of the queue and of the API key, and estimate when its job ends."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, cast

from redis import Redis
from redis.client import Pipeline

from clipsynth.admission.scripts import ADMIT, READ_LOAD, READ_PLACE, RELEASE_RESERVATION
from clipsynth.errors import DeadlineUnreachable, KeptQuota, QueueFull, RateLimited
from clipsynth.redis_keys import (
    ALIVE,
    BUCKET,
    ETA_RATIOS,
    INFLIGHT,
    KEPT,
    LOAD,
    MODEL,
    QUEUE,
    RECORD,
    RESERVATIONS,
    RUNNING,
    STARTING,
    WORKERS,
)
from clipsynth.schemas.model_info import ModelCost
from clipsynth.settings import Settings

# Seconds after which the reservation of a request that was cut off is released.
RESERVATION_S = 120.0
# Retry-After until a worker has measured its cost.
UNKNOWN_S = 5.0
MAX_RETRY_S = 3600.0
# Retry-After while a key keeps too much: records expire one by one.
KEPT_RETRY_S = 60.0
# Running jobs that an estimate reads.
MAX_RUNNING = 256
# Ended generations from which on estimates are corrected by their actual durations.
MIN_RATIOS = 20


class Claim(NamedTuple):
    """An idempotency key in Redis, and the value that binds it to a request."""

    key: str
    value: str


@dataclass
class Reservation:
    """A place for one generation, until the generation is created or `release_reservation` releases it.

    Args:
        claim: the idempotency key to bind with the place.
        rate_per_s, max_kept_bytes: limits of the owner's key; None for those of the settings.

    `reserve` sets `eta_s`, the estimated seconds until its end, or `bound`, the value that the idempotency
    key already has. It also sets `requests`, the requests that the owner may send, of how many, and the
    seconds until it may send all.
    """

    generation_id: str
    owner: str
    model: str
    work: float
    claim: Claim | None = None
    rate_per_s: float | None = None
    max_kept_bytes: int | None = None
    requests: tuple[int, int, int] | None = None
    eta_s: float | None = None
    bound: bytes | None = None

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
    """Reserve a place and estimate the end; return False if the id or idempotency key has a place.

    Raises:
        RateLimited, QueueFull: as `admit`.
        DeadlineUnreachable: the estimated end is after the deadline.
    """
    # EVAL: before a registered script in a pipeline, redis-py asks Redis whether it knows the script.
    with redis.pipeline(transaction=False) as pipeline:
        for script, (keys, args) in (
            (ADMIT, _admission(reservation, settings, cost)),
            (READ_LOAD, _load_arguments(reservation.model, last_ratio=-1 if deadline_s is not None else 0)),
        ):
            pipeline.eval(script, len(keys), *keys, *args)
        verdict, found = pipeline.execute()
    if not _is_admitted(verdict, reservation, settings, cost):
        return False
    expected = _forecast(found, reservation, cost, steps, reserved=True)
    if deadline_s and expected.p50_s and deadline_s < expected.p50_s:
        release_reservation(redis, reservation)
        raise DeadlineUnreachable(f"/deadline_s: it would take about {expected.p50_s:.1f} s")
    reservation.eta_s = expected.base_s
    return True


def admit(redis: Redis, reservation: Reservation, settings: Settings, cost: ModelCost | None) -> bool:
    """Reserve a place; return False if another request has one for this id or idempotency key.

    Raises:
        RateLimited: the owner sends too many requests, or has too many unfinished generations.
        KeptQuota: the records of the owner's generations take too much room in Redis.
        QueueFull: the queue or the owner's share of it is full.
    """
    keys, args = _admission(reservation, settings, cost)
    verdict = redis.register_script(ADMIT)(keys=keys, args=args)
    return _is_admitted(verdict, reservation, settings, cost)


def _max_kept(reservation: Reservation, settings: Settings) -> int:
    own = reservation.max_kept_bytes
    return settings.kept_bytes_per_key if own is None else own


def _admission(
    reservation: Reservation, settings: Settings, cost: ModelCost | None
) -> tuple[list[str], list[Any]]:
    """Return KEYS and ARGV of the script ADMIT."""
    owner, model = reservation.owner, reservation.model
    max_work = settings.max_backlog_s / cost.audio_step_s if cost else 0.0
    record = RECORD + reservation.generation_id
    keys = [LOAD + model, INFLIGHT, BUCKET + owner, RESERVATIONS, record, KEPT]
    rates = rate_limit(settings, reservation.rate_per_s)
    limits = (settings.max_queued, max_work, *rates, settings.max_inflight, reservation.member)
    args: list[Any] = [owner, f"{reservation.work:.6f}", *limits, _max_kept(reservation, settings)]
    if reservation.claim:
        keys.append(reservation.claim.key)
        args += [reservation.claim.value, int(RESERVATION_S)]
    return keys, args


def _is_admitted(
    result: tuple[bytes, bytes], reservation: Reservation, settings: Settings, cost: ModelCost | None
) -> bool:
    """Read the result of the script ADMIT; returns and raises as `admit`."""
    rate, burst = rate_limit(settings, reservation.rate_per_s)
    verdict, number = result[0].decode(), result[1]
    if rate and verdict in ("ok", "rate"):
        left = float(number) if verdict == "ok" else 0.0
        reservation.requests = math.floor(left), math.floor(burst), math.ceil((burst - left) / rate)
    if verdict in ("ok", "reserved", "bound"):
        reservation.bound = number if verdict == "bound" else None
        return bool(verdict == "ok")
    if verdict == "kept":
        max_kept = _max_kept(reservation, settings)
        detail = f"this API key keeps {max_kept} bytes of generations; delete some"
        raise KeptQuota(detail, retry_after_s=KEPT_RETRY_S)
    if verdict == "rate":
        detail = "this API key sends too many requests"
        raise RateLimited(detail, retry_after_s=min(float(number), MAX_RETRY_S))
    seconds = float(number) * cost.audio_step_s if cost else UNKNOWN_S
    retry_after_s = min(max(1.0, seconds), MAX_RETRY_S)
    if verdict == "inflight":
        detail = f"this API key has {settings.max_inflight} unfinished generations"
        raise RateLimited(detail, retry_after_s=retry_after_s)
    subject = "this API key's share of the queue" if verdict == "share" else "the queue"
    raise QueueFull(f"{subject} of model {reservation.model} is full", retry_after_s=retry_after_s)


def rate_limit(settings: Settings, rate_per_s: float | None) -> tuple[float, float]:
    """Return requests per second (0: no limit) and the most at once, for a key's own rate if it has one."""
    burst = max(1.0, settings.rate_burst)
    if rate_per_s is None or not settings.rate_per_s:
        return settings.rate_per_s if rate_per_s is None else rate_per_s, burst
    return rate_per_s, max(1.0, burst * rate_per_s / settings.rate_per_s)


def release_reservation(redis: Redis, reservation: Reservation) -> None:
    """Release the place of a generation that was not created."""
    claim = reservation.claim
    redis.register_script(RELEASE_RESERVATION)(
        keys=[RESERVATIONS, claim.key] if claim else [RESERVATIONS],
        args=[reservation.member, claim.value if claim else ""],
    )


def release_stale_reservations(redis: Redis) -> int:
    """Release the places of requests that were cut off; return their number."""
    oldest = repr(time.time() - RESERVATION_S)
    members = cast(list[bytes], redis.zrange(RESERVATIONS, "-inf", oldest, byscore=True))
    for member in members:
        redis.register_script(RELEASE_RESERVATION)(keys=[RESERVATIONS], args=[member])
    return len(members)


def load(redis: Redis, model: str) -> tuple[int, float]:
    """Return the number of unfinished generations of a model, and their work."""
    n, work = cast(list[bytes | None], redis.hmget(LOAD + model, ["n", "w"]))
    value = float(work or 0)
    return int(n or 0), value if math.isfinite(value) else 0.0


@dataclass(frozen=True)
class Forecast:
    """Estimated seconds until the end of a new request; None without a worker that has measured its cost.

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
) -> Forecast:
    """Estimate the end of a request that comes now and takes `steps` denoising steps."""
    keys, args = _load_arguments(request.model, last_ratio=-1)
    found = redis.register_script(READ_LOAD)(keys=keys, args=args)
    return _forecast(found, request, cost, steps)


def _forecast(
    found: Any, request: Reservation, cost: ModelCost | None, steps: int, *, reserved: bool = False
) -> Forecast:
    """Estimate the end of a request from the result of READ_LOAD.

    Args:
        reserved: whether the request has its place; then the load contains its work.
    """
    queue = _Queue(*found[:5])
    unfinished = int(queue.load.get("n", 0))
    if cost is None or not queue.is_served:
        return Forecast(unfinished, None)
    own = queue.load.get(f"w:{request.owner}", 0.0) - (request.work if reserved else 0.0)
    base_s = queue.eta_s(request.owner, max(0.0, own), request.work, cost, steps)
    ratios = queue.ratios
    p50, p90 = (1.0, 1.5) if len(ratios) < MIN_RATIOS else (ratios[int(q * len(ratios))] for q in (0.5, 0.9))
    return Forecast(unfinished, base_s, base_s * p50, base_s * p90)


def queue_place(pipeline: Pipeline, generation_id: str) -> None:
    """Queue the command whose result `read_place` takes."""
    pipeline.eval(READ_PLACE, 0, MAX_RUNNING, 0, generation_id)


def read_place(result: Any, *, steps: int) -> tuple[int | None, float | None]:
    """Return the number of jobs before a queued one, and the estimated seconds until its end.

    The estimate is None without a worker that has measured its cost. Both are None while a worker claims the
    job.
    """
    if not isinstance(result, list) or not result or result[6] < 0:
        return None, None
    *found, info, position, owner, work, turn, first_turn = result
    cost = json.loads(info).get("cost") if info else None
    if not cost or not work:
        return position, None
    queue, name, own_work = _Queue(*found), owner.decode(), float(work)
    if not queue.is_served:
        return position, None
    # An owner's jobs follow each other in virtual time, so the distance of turns is the queued work before.
    own = queue.running.get(name, 0.0) + max(0.0, float(turn) - float(first_turn))
    own = min(own, max(0.0, queue.load.get(f"w:{name}", 0.0) - own_work))
    return position, queue.eta_s(name, own, own_work, ModelCost.model_validate(cost), steps)


def _load_arguments(model: str, *, last_ratio: int) -> tuple[list[str], list[Any]]:
    """Return KEYS and ARGV of the script READ_LOAD."""
    keys = [prefix + model for prefix in (LOAD, RUNNING, ETA_RATIOS, WORKERS, MODEL, QUEUE, ALIVE, STARTING)]
    return keys, [MAX_RUNNING, last_ratio, ""]


class _Queue:
    """Load of a model, for estimates. Running jobs count half."""

    def __init__(self, load: Any, running: Any, ratios: list[bytes], workers: int, served: int) -> None:
        self.load, self.running = (
            {name.decode(): float(value) for name, value in pairs} for pairs in (load, running)
        )
        self.ratios, self.workers, self.is_served = sorted(map(float, ratios)), max(1, workers), served > 0

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
