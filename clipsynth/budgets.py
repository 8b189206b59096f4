"""Budgets of what all requests share, so that no client uses up everything (OWASP API4)."""

from __future__ import annotations

import threading
import time
from typing import cast

from redis import Redis

from clipsynth.errors import StorageFull
from clipsynth.settings import Settings
from clipsynth.storage import Storage

# Seconds for which an answer of `Room` counts.
LOOK_S = 1.0
# Share of Redis' `maxmemory` for accepted jobs; the rest is for their transitions, and for removal.
REDIS_SHARE = 0.9


class Room:
    """Whether Redis and the disk have room for more jobs."""

    def __init__(self, redis: Redis, storage: Storage, settings: Settings) -> None:
        self.redis, self.storage, self.settings = redis, storage, settings
        self._lock = threading.Lock()
        self._looked_at, self._reason = float("-inf"), ""

    def check(self) -> None:
        """Look at both, at most once in `LOOK_S`.

        Raises:
            StorageFull: Redis is near its `maxmemory`, or the disk near its reserve.
        """
        with self._lock:
            if time.monotonic() - self._looked_at >= LOOK_S:
                self._reason, self._looked_at = self._look(), time.monotonic()
        if self._reason:
            raise StorageFull(self._reason)

    def _look(self) -> str:
        memory = cast(dict[str, int], self.redis.info("memory"))
        most = memory.get("maxmemory", 0)
        if most and memory["used_memory"] > REDIS_SHARE * most:
            return "Redis has no memory for more jobs; results expire, or delete some"
        return ""
