"""A net below the worker: generations that have not ended and are on no list of their queue, so that nobody would ever end them. There should be none."""

from __future__ import annotations

import logging
from typing import cast

from pydantic import ValidationError
from redis.exceptions import WatchError

from clipsynth.jobs.queue import is_queued
from clipsynth.jobs.record import record_key
from clipsynth.jobs.scripts import UNFINISHED_KEY
from clipsynth.jobs.store import End, JobStore
from clipsynth.schemas.generation import TERMINAL, Problem, Status
from clipsynth.schemas.request import JobPayload
from clipsynth.settings import Settings

logger = logging.getLogger(__name__)
STRAYS_KEY = "clipsynth:strays"  # how many were found
LOST = Problem(
    code="worker_lost", detail="the job was lost, and what it was to do cannot be read any more"
).model_dump_json()


def orphans_found(state: JobStore) -> int:
    """Return how many strays were found since Redis was set up."""
    return int(cast(bytes | None, state.redis.get(STRAYS_KEY)) or 0)


class _Newer(Exception):
    pass


class OrphanReconciler:
    """Looks for strays. One is seen to at the second look that finds it: the first only suspects it."""

    def __init__(self, state: JobStore, settings: Settings) -> None:
        self.state, self.settings = state, settings
        self._suspects: set[str] = set()

    def look(self) -> int:
        """End strays whose cancel was asked for, put the others back on their queues; return how many those were."""
        suspects = self._find()
        found = 0
        for generation_id in sorted(suspects & self._suspects):
            found += self._requeue(generation_id)
        self._suspects = suspects
        return found

    def _find(self) -> set[str]:
        """Return what is unfinished, and a moment later on no list: what a worker takes, leases or gives back is on one all the time."""
        unfinished = self.state.unfinished()
        return unfinished.keys() - is_queued(self.state.redis, set(unfinished.values()))

    def _requeue(self, generation_id: str) -> bool:
        """Return whether it was a stray still, and this janitor the one to see to it."""
        redis, key = self.state.redis, record_key(generation_id)
        with redis.pipeline() as pipeline:
            pipeline.watch(key)
            if generation_id not in self._find():
                return False
            status_view = self.state.status_views([generation_id])[0]
            if status_view and status_view.status in TERMINAL:  # it ended by the script of an earlier version
                redis.hdel(UNFINISHED_KEY, generation_id)
                return False
            try:
                payload = self._payload(key) if status_view else None
            except _Newer:  # a janitor of that version will see to it
                return False
            pipeline.multi()
            pipeline.incr(STRAYS_KEY)
            if status_view and status_view.cancel_requested:
                self.state.end(End(generation_id, Status.CANCELED), pipeline)
            elif payload:
                self.state.requeue(generation_id, payload, self.settings, pipeline)
            else:
                self.state.end(End(generation_id, Status.FAILED, {"error": LOST}), pipeline)
                pipeline.hdel(UNFINISHED_KEY, generation_id)  # there may be no record to end
            try:
                pipeline.execute(raise_on_error=False)  # a spoilt record is not to keep others from it
            except WatchError:
                return False
        logger.error("generation %s was on no queue", generation_id)
        return True

    def _payload(self, key: str) -> JobPayload | None:
        """Return what a record asks for; None where it is spoilt.

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
