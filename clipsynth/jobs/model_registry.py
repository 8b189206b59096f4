"""What workers serve, as they announce it in Redis."""

from __future__ import annotations

import json
from typing import cast

from redis import Redis

from clipsynth.errors import ModelNotFound, NoWorker
from clipsynth.schemas.generation import ModelInfo, ServedModel

MODEL_TTL_S = 30
STARTING_TTL_S = 120
NAMES_KEY = "clipsynth:models"  # set: every name that a worker announced

# KEYS[1] names; for each, in order: what is served, and whether a worker is live, or starting. One round trip: every request asks.
_READ = """
local names, rows = redis.call('SMEMBERS', KEYS[1]), {}
table.sort(names)
for n, name in ipairs(names) do
  rows[n] = redis.call('MGET', 'clipsynth:model:' .. name, 'clipsynth:alive:' .. name, 'clipsynth:starting:' .. name)
end
return rows
"""


class ModelRegistry:
    """Reads and announces bundles over one Redis connection pool."""

    redis: Redis

    def announce_starting(self, info: ModelInfo) -> None:
        """Say that a worker loads a bundle: what is asked of it may already be queued."""
        with self.redis.pipeline() as pipeline:
            pipeline.sadd(NAMES_KEY, info.name)
            pipeline.set(f"clipsynth:model:{info.name}", info.model_dump_json())
            pipeline.set(f"clipsynth:starting:{info.name}", "1", ex=STARTING_TTL_S)
            pipeline.execute()

    def announce(self, info: ModelInfo) -> None:
        """Say that a worker serves a bundle; to be repeated within MODEL_TTL_S. What it serves is remembered, its life is not."""
        with self.redis.pipeline() as pipeline:
            pipeline.sadd(NAMES_KEY, info.name)
            pipeline.set(f"clipsynth:model:{info.name}", info.model_dump_json())
            pipeline.set(f"clipsynth:alive:{info.name}", "1", ex=MODEL_TTL_S)
            pipeline.delete(f"clipsynth:starting:{info.name}")
            pipeline.execute()

    def announce_stopped(self, name: str) -> None:
        """Take back that a worker is starting."""
        self.redis.delete(f"clipsynth:starting:{name}")

    def models(self) -> list[ServedModel]:
        """Return every bundle that a worker has served, by name."""
        rows = cast(list[list[bytes | None]], self.redis.register_script(_READ)(keys=[NAMES_KEY]))
        return [
            ServedModel(
                **json.loads(info),
                status="ready" if is_alive else "starting" if is_starting else "absent",
            )
            for info, is_alive, is_starting in rows
            if info
        ]

    def model(self, name: str | None) -> ServedModel:
        """Return the bundle `name`, or the first one, if a worker serves it or is starting to.

        Raises:
            ModelNotFound: there is none of that name. NoWorker: no worker for it is live or starting.
        """
        known = {info.name: info for info in self.models()}
        if name is not None and known and name not in known:
            raise ModelNotFound(f"there is no model {name!r}; served: {', '.join(known)}")
        wanted = [info for info in known.values() if name in (None, info.name) and info.status != "absent"]
        if not wanted:
            raise NoWorker(f"no worker is running{f' for model {name!r}' if name else ''}")
        return min(wanted, key=lambda info: info.status)  # "ready" before "starting"
