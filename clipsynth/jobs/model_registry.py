"""Models that workers serve, as they announce them in Redis."""

from __future__ import annotations

import json
import logging
import time
from functools import lru_cache
from typing import cast

from redis import Redis

from clipsynth.errors import ModelNotFound, NoWorker
from clipsynth.redis_keys import ALIVE, MODEL, MODELS, PRECISIONS, SEEN, STARTING, WORKERS, lua_names
from clipsynth.schemas.model_info import ModelInfo, ServedModel

logger = logging.getLogger(__name__)
MODEL_TTL_S = 30
STARTING_TTL_S = 120
RENEWED_TTL_S = 30
# A request is resolved with what was read of the models at most so long ago.
FRESH_S = 1.0

# Every request reads the models, so this takes one round trip.
_READ = (
    lua_names("MODEL", "ALIVE", "STARTING", "SEEN")
    + """
-- KEYS: 1 names of models.
-- Returns for each model, by name: its description, whether a worker serves or loads it, and when one last
-- served it.
local names, rows = redis.call('SMEMBERS', KEYS[1]), {}
table.sort(names)
for n, name in ipairs(names) do
  rows[n] = redis.call('MGET', MODEL .. name, ALIVE .. name, STARTING .. name)
  rows[n][4] = redis.call('HGET', SEEN, name)
end
return rows
"""
)
_WITHDRAW = """
-- KEYS: 1 whether a worker serves the model, 2 RQ's workers of the model. ARGV: 1 RQ's key of a worker.
if redis.call('SCARD', KEYS[2]) == redis.call('SISMEMBER', KEYS[2], ARGV[1]) then
  redis.call('DEL', KEYS[1])
end
"""
# The order of preference for a request that names no model.
_STATUSES = ("ready", "starting", "absent")


def _preference(info: ServedModel) -> tuple[int, float]:
    lost_at = info.last_seen_at or 0.0 if info.status == "absent" else 0.0
    return _STATUSES.index(info.status), -lost_at


@lru_cache(maxsize=64)
def _described(info: bytes) -> ServedModel:
    """Return a model without its status; every request reads the same few descriptions."""
    return ServedModel(**json.loads(info), status="absent", last_seen_at=None)


class ModelRegistry:
    """Reads and announces models.

    Attributes:
        queue_timeout_s: a model accepts jobs for this time after its last worker.
    """

    redis: Redis
    queue_timeout_s: float
    _latest: tuple[float, list[ServedModel]] = (-FRESH_S, [])

    def announce_starting(self, info: ModelInfo) -> None:
        """Announce that a worker loads a model: its queue accepts jobs from now on."""
        with self.redis.pipeline() as pipeline:
            pipeline.sadd(MODELS, info.name)
            pipeline.set(MODEL + info.name, info.model_dump_json())
            pipeline.set(STARTING + info.name, "1", ex=STARTING_TTL_S)
            pipeline.execute()

    def renew_starting(self, name: str) -> None:
        """Announce again, within RENEWED_TTL_S, that a worker loads a model, unless one serves it."""
        if not self.redis.exists(ALIVE + name):
            self.redis.set(STARTING + name, "1", ex=RENEWED_TTL_S)

    def announce(self, info: ModelInfo) -> None:
        """Announce that a worker serves a model; repeat within MODEL_TTL_S.

        The description of the model is kept after that time.
        """
        self._latest = -FRESH_S, []
        with self.redis.pipeline() as pipeline:
            pipeline.sadd(MODELS, info.name)
            pipeline.set(MODEL + info.name, info.model_dump_json())
            pipeline.set(ALIVE + info.name, "1", ex=MODEL_TTL_S)
            pipeline.hset(SEEN, info.name, repr(now := time.time()))
            pipeline.delete(STARTING + info.name)
            pipeline.zadd(PRECISIONS + info.name, {info.precision: now})
            pipeline.expire(PRECISIONS + info.name, MODEL_TTL_S)
            pipeline.execute()

    def precisions(self, name: str) -> list[str]:
        """Return the precisions of a model's workers, by name. With two, a seed may mean two sounds."""
        since = time.time() - MODEL_TTL_S
        found = cast(list[bytes], self.redis.zrangebyscore(PRECISIONS + name, since, "inf"))
        return sorted(precision.decode() for precision in found)

    def announce_stopped(self, name: str) -> None:
        """Announce that a worker no longer loads a model."""
        self.redis.delete(STARTING + name)

    def withdraw_worker(self, name: str, worker: str) -> None:
        """Announce that a worker stops serving a model, unless RQ knows others of that model.

        Args:
            worker: RQ's key of the worker.
        """
        self.redis.register_script(_WITHDRAW)(keys=[ALIVE + name, WORKERS + name], args=[worker])

    def models(self) -> list[ServedModel]:
        """Return every model that a worker has served, by name."""
        now = time.monotonic()
        rows = cast(list[list[bytes | None]], self.redis.register_script(_READ)(keys=[MODELS]))
        found = []
        for info, is_alive, is_starting, seen_at in rows:
            status = "ready" if is_alive else "starting" if is_starting else "absent"
            fields = {"status": status, "last_seen_at": float(seen_at) if seen_at else None}
            try:
                found += [_described(info).model_copy(update=fields)] if info else []
            except (TypeError, ValueError):
                logger.warning("the description of a model cannot be read", exc_info=True)
        self._latest = now, found
        return found

    def model(self, name: str | None) -> ServedModel:
        """Return the model `name`, or the first one that a worker serves, else loads, else served last.

        Raises:
            ModelNotFound: no model has this name.
            NoWorker: no worker loads the model, or has served it within `queue_timeout_s`.
        """
        read_at, known = self._latest
        if time.monotonic() - read_at < FRESH_S:
            ready = [info for info in known if name in (None, info.name) and info.status == "ready"]
            if ready:
                return ready[0]
        known = self.models()
        names = [info.name for info in known]
        if name is not None and known and name not in names:
            raise ModelNotFound(f"there is no model {name!r}; available: {', '.join(names)}")
        wanted = [info for info in known if name in (None, info.name) and self.accepts(info)]
        if not wanted:
            raise NoWorker(f"no worker is running{f' for model {name!r}' if name else ''}")
        return min(wanted, key=_preference)

    def had_worker(self) -> bool:
        """Return whether a worker has ever served a model, or loads one now."""
        return any(info.last_seen_at or info.status != "absent" for info in self.models())

    def accepts(self, info: ServedModel) -> bool:
        """Return whether a model accepts jobs: one that lost its worker a while ago may get it back."""
        return info.status != "absent" or self.was_served(info)

    def was_served(self, info: ServedModel) -> bool:
        """Return whether a worker served a model within `queue_timeout_s`."""
        return (info.last_seen_at or 0.0) > time.time() - self.queue_timeout_s
