"""`clipsynth janitor`: expire jobs, remove old files and records, requeue orphans.

Any number of janitors may run.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from prometheus_client import CollectorRegistry
from redis.exceptions import RedisError

from clipsynth.admission.limits import release_stale_reservations
from clipsynth.errors import ClipSynthError, ServeError, StorageUnavailable
from clipsynth.jobs.queue import connect, withdraw
from clipsynth.jobs.reconcile import OrphanReconciler
from clipsynth.jobs.store import JobStore
from clipsynth.schemas.generation import Problem, Status
from clipsynth.services.metrics_server import Heartbeat, expose
from clipsynth.settings import Settings
from clipsynth.storage import Storage

logger = logging.getLogger(__name__)
DEADLINE_INTERVAL_S = 1.0
ORPHAN_INTERVAL_S = 15.0
# Time for one sweep; the next one continues.
MAX_SWEEP_S = 30.0
RETRY_S = 600.0  # pause before files are removed again after an error


def sweep(state: JobStore, storage: Storage) -> int:
    """Remove expired generations and return their number.

    The record is removed first, so that no client is sent to missing files. The index entry is removed last,
    so that the next sweep continues after a crash. Files that cannot be removed are tried again after
    `RETRY_S`.
    """
    swept = 0
    until = time.monotonic() + MAX_SWEEP_S
    while time.monotonic() < until and (ids := state.expired()):
        for generation_id in ids:
            state.forget(generation_id)
            try:
                storage.delete(generation_id)
            except StorageUnavailable:
                logger.warning("files of %s are not removed yet", generation_id, exc_info=True)
                state.postpone(generation_id, RETRY_S)
                continue
            state.files_removed(generation_id)
            swept += 1
    return swept


def expire(state: JobStore) -> int:
    """Expire queued jobs after their deadline and return their number."""
    ended = 0
    ids = state.overdue()
    for generation_id, status_view in zip(ids, state.status_views(ids), strict=True):
        if status_view and status_view.status is Status.PROCESSING:
            continue  # its worker expires it, or loses it, and then it is queued again
        if status_view and state.end_queued(generation_id, Status.EXPIRED):
            withdraw(state.redis, generation_id, state.get(generation_id).model)
            ended += 1
        state.drop_deadline(generation_id)
    return ended


def expire_unserved(state: JobStore) -> int:
    """Expire jobs that wait for a model without a worker since `queue_timeout_s`; return their number."""
    # A worker that loads its model again and again does not count.
    served = {info.name for info in state.models() if info.status == "ready" or state.was_served(info)}
    waiting = {i: model for i, model in state.unfinished().items() if model not in served}
    oldest, ended = time.time() - state.queue_timeout_s, 0
    detail = f"no worker served the model for {state.queue_timeout_s:.0f} s"
    error = Problem(code="no_worker", detail=detail).model_dump_json()
    for generation_id, created_at in state.created_at(list(waiting)).items():
        if created_at < oldest and state.end_queued(generation_id, Status.EXPIRED, error=error):
            withdraw(state.redis, generation_id, waiting[generation_id])
            ended += 1
    return ended


@dataclass
class _Step:
    """What a janitor does again and again. A step that fails holds up no other one."""

    says: str
    interval_s: float
    run: Callable[[], int]
    due_at: float = 0.0

    def look(self) -> None:
        if time.monotonic() < self.due_at:
            return
        self.due_at = time.monotonic() + self.interval_s
        try:
            if found := self.run():
                logger.info("%s: %d", self.says, found)
        except (RedisError, OSError, ClipSynthError):
            logger.warning("%s: not finished; the next look continues", self.says, exc_info=True)


def run(settings: Settings, stop: threading.Event) -> None:
    """Remove what expired, check deadlines and look for orphans, each at its interval, until `stop`.

    Raises:
        ServeError: no Redis URL.
    """
    if not settings.redis_url:
        raise ServeError("the janitor needs CLIPSYNTH_REDIS_URL; `clipsynth serve` sets it")
    state = JobStore.from_settings(connect(settings.redis_url), settings)
    storage = Storage(settings.results_url)
    orphans = OrphanReconciler(state)
    steps = [
        # Removal comes first: while Redis is full, it makes room for the others.
        _Step("removed generations", settings.janitor_interval_s, partial(sweep, state, storage)),
        _Step("expired generations", DEADLINE_INTERVAL_S, partial(expire, state)),
        _Step(
            "released reservations of interrupted requests",
            settings.janitor_interval_s,
            partial(release_stale_reservations, state.redis),
        ),
        _Step("orphaned generations", ORPHAN_INTERVAL_S, orphans.look),
        _Step("generations without a worker", ORPHAN_INTERVAL_S, partial(expire_unserved, state)),
    ]
    heartbeat = Heartbeat()
    if settings.metrics_port is not None:
        where = settings.metrics_port, settings.metrics_address
        expose(CollectorRegistry(), *where, healthy=heartbeat.is_alive)
    while not stop.is_set():
        for step in steps:
            heartbeat.beat()
            step.look()
        stop.wait(min(DEADLINE_INTERVAL_S, settings.janitor_interval_s))
