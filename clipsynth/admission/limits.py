"""Reserve a place within the limits of the queue and of the API key, and estimate when its job ends."""

from __future__ import annotations

import hashlib
import math
import time
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple, cast

from redis import Redis
from redis.client import Pipeline
from redis.exceptions import NoScriptError

from clipsynth.admission.scripts import ADMIT, READ_LOAD, READ_PLACE, RELEASE_RESERVATION, RUN
from clipsynth.errors import DeadlineUnreachable, KeptQuota, QueueFull, RateLimited
from clipsynth.redis_keys import BUCKET, INFLIGHT, KEPT, LOAD, RECORD, RESERVATIONS
from clipsynth.schemas.model_info import ModelCost
from clipsynth.settings import Settings

# Seconds after which the reservation of a request that was cut off is released.
RESERVATION_S = 120.0
# Retry-After until a worker has measured its cost.
UNKNOWN_S = 5.0
MAX_RETRY_S = 3600.0
# Retry-After while a key keeps too much: records expire one by one.
KEPT_RETRY_S = 60.0
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


@lru_cache(maxsize=8)
def _assembled(scripts: tuple[str, ...]) -> tuple[str, str]:
    """Return one script that has all of these, and its hash."""
    parts = [f"SCRIPTS['@{n}'] = function(KEYS, ARGV)\n{text}\nend\n" for n, text in enumerate(scripts)]
    text = "".join(["local SCRIPTS = {}\n", *parts, RUN])
    return text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


class ScriptPipeline(Pipeline):
    """A pipeline that Redis carries out in one step, as MULTI does, but in one script and one command.

    Redis knows the script by its hash. If it has forgotten it, it has carried out nothing, and the text is
    sent. Of a MULTI it would have carried out the other commands.
    """

    def __init__(self, redis: Redis, *scripts: str) -> None:
        """Prepare; `eval` takes these scripts only."""
        super().__init__(redis.connection_pool, redis.response_callbacks, transaction=False, shard_hint=None)
        self._redis, self._scripts = redis, scripts
        # RQ opens a MULTI.
        self.multi = lambda: None  # type: ignore[method-assign]

    def execute(self, raise_on_error: bool = True) -> list[Any]:
        """Return the results; an error among them is raised, after all commands were carried out."""
        words: list[Any] = []
        for args, _ in self.command_stack:
            if args[0] == "EVAL":
                args = (f"@{self._scripts.index(args[1])}", *args[2:])
            words += (len(args), *args)
        self.reset()
        if not words:
            return []
        text, sha = _assembled(self._scripts)
        try:
            results = self._redis.evalsha(sha, 0, *words)
        except NoScriptError:
            results = self._redis.eval(text, 0, *words)
        error = next((result for result in results if isinstance(result, Exception)), None)
        if error is not None and raise_on_error:
            raise error
        return list(results)


@dataclass(frozen=True)
class Admission:
    """Reserves a place and estimates the end, as part of a batch.

    Args:
        cost: of the model, if a worker has measured it.
        steps: denoising steps of the request.
        keeps_s: seconds for which the idempotency key is bound if the batch also creates the generation; 0 if
            it is created later.
    """

    reservation: Reservation
    settings: Settings
    cost: ModelCost | None
    steps: int
    keeps_s: int = 0

    def queue(self, pipeline: Pipeline, *, has_ratios: bool = False) -> None:
        """Queue two commands, whose results `read` takes; what follows is carried out only with a place."""
        own = self.reservation
        keys, args = _admission(own, self.settings, self.cost, self.keeps_s)
        pipeline.eval(ADMIT, len(keys), *keys, *args)
        # The duration of a request without work says nothing about estimates.
        noted = own.generation_id if self.keeps_s and own.work else ""
        args = _load_arguments(own, self.cost, self.steps, own.work, ratios=has_ratios, noted=noted)
        pipeline.eval(READ_LOAD, 0, *args)

    def read(self, results: list[Any]) -> Forecast | None:
        """Return the estimate; None if another request has a place for this id or idempotency key.

        Raises:
            RateLimited: the owner sends too many requests, or has too many unfinished generations.
            KeptQuota: the records of the owner's generations take too much room in Redis.
            QueueFull: the queue or the owner's share of it is full.
        """
        if not _is_admitted(results[0], self.reservation, self.settings, self.cost):
            return None
        found = _forecast(results[1], self.reservation, self.cost, self.steps)
        self.reservation.eta_s = found.base_s
        return found


def reserve(redis: Redis, admission: Admission, deadline_s: float | None = None) -> bool:
    """Reserve a place and estimate the end; return False if the id or idempotency key has a place.

    Raises:
        RateLimited, KeptQuota, QueueFull: as `Admission.read`.
        DeadlineUnreachable: the estimated end is after the deadline.
    """
    with ScriptPipeline(redis, ADMIT, READ_LOAD) as batch:
        admission.queue(batch, has_ratios=deadline_s is not None)
        found = admission.read(batch.execute())
    if found and deadline_s and found.p50_s and deadline_s < found.p50_s:
        release_reservation(redis, admission.reservation)
        raise DeadlineUnreachable(f"/deadline_s: it would take about {found.p50_s:.1f} s")
    return found is not None


def _max_kept(reservation: Reservation, settings: Settings) -> int:
    own = reservation.max_kept_bytes
    return settings.kept_bytes_per_key if own is None else own


def _admission(
    reservation: Reservation, settings: Settings, cost: ModelCost | None, keeps_s: int
) -> tuple[list[str], list[Any]]:
    """Return KEYS and ARGV of the script ADMIT."""
    owner, model = reservation.owner, reservation.model
    max_work = settings.max_backlog_s / cost.audio_step_s if cost else 0.0
    record = RECORD + reservation.generation_id
    keys = [LOAD + model, INFLIGHT, BUCKET + owner, RESERVATIONS, record, KEPT]
    rates = rate_limit(settings, reservation.rate_per_s)
    limits = (settings.max_queued, max_work, *rates, settings.max_inflight)
    member = "" if keeps_s else reservation.member
    args: list[Any] = [owner, f"{reservation.work:.6f}", *limits, member, _max_kept(reservation, settings)]
    if reservation.claim:
        keys.append(reservation.claim.key)
        args += [reservation.claim.value, keeps_s or int(RESERVATION_S)]
    return keys, args


def _is_admitted(
    result: tuple[bytes, bytes], reservation: Reservation, settings: Settings, cost: ModelCost | None
) -> bool:
    """Read the result of the script ADMIT; raises as `Admission.read`."""
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
    args = _load_arguments(request, cost, steps, 0.0, ratios=True)
    return _forecast(redis.register_script(READ_LOAD)(args=args), request, cost, steps)


def _forecast(found: Any, request: Reservation, cost: ModelCost | None, steps: int) -> Forecast:
    """Estimate the end of a request from the result of READ_LOAD."""
    unfinished, before_s, ratios = found
    if not cost or not before_s:
        return Forecast(unfinished, None)
    base_s = float(before_s) + _own_s(request.work, cost, steps)
    ratios = sorted(map(float, ratios))
    p50, p90 = (1.0, 1.5) if len(ratios) < MIN_RATIOS else (ratios[int(q * len(ratios))] for q in (0.5, 0.9))
    return Forecast(unfinished, base_s, base_s * p50, base_s * p90)


def _own_s(work: float, cost: ModelCost, steps: int) -> float:
    """Return the seconds that a job takes itself; 0 for retrieval."""
    return max(work * cost.audio_step_s, steps * cost.step_s) if work else 0.0


def queue_place(pipeline: Pipeline, generation_id: str) -> None:
    """Queue the command whose result `read_place` takes."""
    pipeline.eval(READ_PLACE, 0, generation_id)


def read_place(result: Any, *, steps: int) -> tuple[int | None, float | None]:
    """Return the number of jobs before a queued one, and the estimated seconds until its end.

    The estimate is None without a worker that has measured its cost. Both are None while a worker claims the
    job.
    """
    if not isinstance(result, list) or not result:
        return None, None
    position, *known = result
    if not known or not known[0]:
        return position, None
    before_s, work, cost = known
    return position, float(before_s) + _own_s(float(work), ModelCost.model_validate_json(cost), steps)


def _load_arguments(
    request: Reservation, cost: ModelCost | None, steps: int, in_load: float, *, ratios: bool, noted: str = ""
) -> list[Any]:
    """Return ARGV of the script READ_LOAD; `in_load` is the work of the request that the load contains."""
    step_s, own_s = (cost.audio_step_s, _own_s(request.work, cost, steps)) if cost else ("", 0.0)
    return [request.model, request.owner, in_load, step_s, -1 if ratios else 0, own_s, noted]
