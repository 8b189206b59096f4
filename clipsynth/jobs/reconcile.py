"""Orphaned jobs: unfinished generations that are in no queue, so that no worker would end them.

There should be none; this is a safety net below the worker.
"""

from __future__ import annotations

import logging
from typing import cast

from pydantic import ValidationError
from redis.exceptions import WatchError

from clipsynth.jobs.queue import known_jobs
from clipsynth.jobs.store import End, JobStore
from clipsynth.redis_keys import ORPHANS, RECORD, UNFINISHED
from clipsynth.schemas.generation import TERMINAL, JobPayload, Problem, Status

logger = logging.getLogger(__name__)
LOST = Problem(code="worker_lost", detail="the job was lost, and its record cannot be read").model_dump_json()


def orphans_found(state: JobStore) -> int:
    """Return the number of orphaned jobs found since Redis was set up."""
    return int(cast(bytes | None, state.redis.get(ORPHANS)) or 0)


class _Newer(Exception):
    pass


class OrphanReconciler:
    """Finds orphaned jobs and requeues or ends them. Acts on the second look that finds one."""

    def __init__(self, state: JobStore) -> None:
        self.state = state
        self._suspects: set[str] = set()

    def look(self) -> int:
        """End orphans whose cancel was requested, requeue the others; return their number."""
        suspects = self._find()
        found = 0
        for generation_id in sorted(suspects & self._suspects):
            found += self._requeue(generation_id)
        self._suspects = suspects
        return found

    def _find(self) -> set[str]:
        """Return the unfinished generations that a moment later are in no queue.

        A job that a worker takes, claims or puts back is in one of the lists at any moment.
        """
        unfinished = self.state.unfinished()
        return unfinished.keys() - known_jobs(self.state.redis, set(unfinished.values()))

    def _requeue(self, generation_id: str) -> bool:
        """Return whether the job was still orphaned and this janitor handled it."""
        redis, key = self.state.redis, RECORD + generation_id
        with redis.pipeline() as pipeline:
            pipeline.watch(key)
            if generation_id not in self._find():
                return False
            status_view = self.state.status_views([generation_id])[0]
            # Scripts of earlier versions did not remove an ended generation from this hash.
            if status_view and status_view.status in TERMINAL:
                redis.hdel(UNFINISHED, generation_id)
                return False
            try:
                payload = self._payload(key) if status_view else None
            except _Newer:  # left to a janitor of the newer version
                return False
            pipeline.multi()
            pipeline.incr(ORPHANS)
            if status_view and status_view.cancel_requested:
                self.state.queue_end(pipeline, End(generation_id, Status.CANCELED))
            elif payload:
                self.state.queue_orphan(pipeline, generation_id, payload)
            else:
                self.state.queue_end(pipeline, End(generation_id, Status.FAILED, {"error": LOST}))
                pipeline.hdel(UNFINISHED, generation_id)  # the record may be missing
            try:
                pipeline.execute(raise_on_error=False)  # a broken record must not block the others
            except WatchError:
                return False
        logger.error("generation %s was in no queue", generation_id)
        return True

    def _payload(self, key: str) -> JobPayload | None:
        """Return the payload of a record; None if it cannot be read.

        Raises:
            _Newer: it has fields that only a newer version knows.
        """
        try:
            return JobPayload.model_validate_json(
                cast(bytes | None, self.state.redis.hget(key, "input")) or ""
            )
        except ValidationError as error:
            if {e["type"] for e in error.errors()} == {"extra_forbidden"}:
                raise _Newer from error
            return None
