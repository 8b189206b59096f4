"""Models that workers serve, as they announce them in Redis."""

from __future__ import annotations

import json
from typing import cast

from redis import Redis

from clipsynth.errors import ModelNotFound, NoWorker
from clipsynth.redis_keys import ALIVE, MODEL, MODELS, STARTING, lua_names
from clipsynth.schemas.model_info import ModelInfo, ServedModel

MODEL_TTL_S = 30
STARTING_TTL_S = 120

# Every request reads the models, so this takes one round trip.
_READ = (
    lua_names("MODEL", "ALIVE", "STARTING")
    + """
-- KEYS: 1 names of models.
-- Returns for each model, by name: its description, and whether a worker serves or loads it.
local names, rows = redis.call('SMEMBERS', KEYS[1]), {}
table.sort(names)
for n, name in ipairs(names) do
  rows[n] = redis.call('MGET', MODEL .. name, ALIVE .. name, STARTING .. name)
end
return rows
"""
)


class ModelRegistry:
    """Reads and announces models."""

    redis: Redis

    def announce_starting(self, info: ModelInfo) -> None:
        """Announce that a worker loads a model: its queue accepts jobs from now on."""
        with self.redis.pipeline() as pipeline:
            pipeline.sadd(MODELS, info.name)
            pipeline.set(MODEL + info.name, info.model_dump_json())
            pipeline.set(STARTING + info.name, "1", ex=STARTING_TTL_S)
            pipeline.execute()

    def announce(self, info: ModelInfo) -> None:
        """Announce that a worker serves a model; repeat within MODEL_TTL_S.

        The description of the model is kept after that time.
        """
        with self.redis.pipeline() as pipeline:
            pipeline.sadd(MODELS, info.name)
            pipeline.set(MODEL + info.name, info.model_dump_json())
            pipeline.set(ALIVE + info.name, "1", ex=MODEL_TTL_S)
            pipeline.delete(STARTING + info.name)
            pipeline.execute()

    def announce_stopped(self, name: str) -> None:
        """Announce that a worker no longer loads a model."""
        self.redis.delete(STARTING + name)

    def models(self) -> list[ServedModel]:
        """Return every model that a worker has served, by name."""
        rows = cast(list[list[bytes | None]], self.redis.register_script(_READ)(keys=[MODELS]))
        return [
            ServedModel(
                **json.loads(info),
                status="ready" if is_alive else "starting" if is_starting else "absent",
            )
            for info, is_alive, is_starting in rows
            if info
        ]

    def model(self, name: str | None) -> ServedModel:
        """Return the model `name`, or the first one that a worker serves, else the first that one loads.

        Raises:
            ModelNotFound: no model has this name.
            NoWorker: no worker serves or loads the model.
        """
        known = {info.name: info for info in self.models()}
        if name is not None and known and name not in known:
            raise ModelNotFound(f"there is no model {name!r}; available: {', '.join(known)}")
        wanted = [info for info in known.values() if name in (None, info.name) and info.status != "absent"]
        if not wanted:
            raise NoWorker(f"no worker is running{f' for model {name!r}' if name else ''}")
        return min(wanted, key=lambda info: info.status)  # "ready" before "starting"
