"""Removal of generations: which are due, and the change of a record into a tombstone."""

from __future__ import annotations

import time
from typing import cast

from redis import Redis
from redis.exceptions import ResponseError

from clipsynth.jobs.queue import withdraw
from clipsynth.jobs.scripts import FORGET
from clipsynth.redis_keys import DEADLINES, EVENTS, EXPIRY, OWNER_INDEX, PROGRESS, RECORD
from clipsynth.schemas.generation import Status

# Files of a generation that is not created within this time are removed.
UNCREATED_S = 3600
# Tombstones of one owner; older ones are dropped, and answer 404 instead of 410.
MAX_TOMBSTONES = 10_000
# Seconds that the idempotency key of a removed generation stays bound to it.
CLAIM_TTL_S = 600
# Generations that `forget_all` reads at a time.
PAGE = 100


class RecordRemover:
    """Removes generations. All of it also works while Redis is at its `maxmemory`."""

    redis: Redis
    tombstone_ttl_s: int

    def expired(self, *, limit: int = 100) -> list[str]:
        """Return the ids of generations that must be removed, the oldest first."""
        ids = self.redis.zrangebyscore(EXPIRY, 0, time.time(), start=0, num=limit)
        return [i.decode() for i in cast(list[bytes], ids)]

    def postpone(self, generation_id: str, seconds: float) -> None:
        """Have `expired` return a generation again later, because its files could not be removed."""
        self.redis.zadd(EXPIRY, {generation_id: time.time() + seconds}, xx=True)

    def overdue(self) -> list[str]:
        """Return the ids of generations whose deadline has passed, until `drop_deadline` removes them."""
        ids = self.redis.zrange(DEADLINES, "-inf", repr(time.time()), byscore=True)
        return [i.decode() for i in cast(list[bytes], ids)]

    def drop_deadline(self, generation_id: str) -> None:
        self.redis.zrem(DEADLINES, generation_id)

    def forget(self, generation_id: str) -> None:
        """Replace the record with a tombstone. Call `files_removed` when the files are removed."""
        now = time.time()
        self.redis.register_script(FORGET)(
            keys=[RECORD + generation_id, PROGRESS + generation_id, EXPIRY, EVENTS + generation_id],
            args=[generation_id, now, now + UNCREATED_S, self.tombstone_ttl_s, MAX_TOMBSTONES, CLAIM_TTL_S],
        )

    def forget_all(self, owner: str, *, until: float) -> tuple[int, bool]:
        """Forget the generations of an owner, for the janitor to remove their files.

        Returns:
            Their number, and whether none is left. It stops at the monotonic time `until`.
        """
        removed = 0
        while ids := cast(list[bytes], self.redis.zrange(OWNER_INDEX + owner, 0, PAGE - 1)):
            for generation_id in map(bytes.decode, ids):
                if time.monotonic() > until:
                    return removed, False
                model, status = self._model_and_status(generation_id)
                self.forget(generation_id)
                self.redis.zrem(OWNER_INDEX + owner, generation_id)  # also without a readable record
                if model:
                    withdraw(self.redis, generation_id, model)
                if status != Status.PROCESSING:  # then its worker may still write files
                    self.postpone(generation_id, 0)
                removed += 1
        return removed, True

    def _model_and_status(self, generation_id: str) -> tuple[str, str]:
        """Return both, empty for a record that cannot be read."""
        try:
            found = self.redis.hmget(RECORD + generation_id, ["model", "status"])
        except ResponseError:
            return "", ""
        model, status = (value.decode() if value else "" for value in cast(list[bytes | None], found))
        return model, status

    def files_removed(self, generation_id: str) -> None:
        self.redis.zrem(EXPIRY, generation_id)
