"""`clipsynth janitor`: expire jobs, remove old files and records, requeue orphans.

Any number of janitors may run.
"""

from __future__ import annotations

import logging
import threading
import time

from redis.exceptions import RedisError

from clipsynth.admission.limits import release_stale_reservations
from clipsynth.errors import ClipSynthError, ServeError, StorageUnavailable
from clipsynth.jobs.queue import connect, withdraw
from clipsynth.jobs.reconcile import OrphanReconciler
from clipsynth.jobs.store import JobStore
from clipsynth.schemas.generation import Problem, Status
from clipsynth.settings import Settings
from clipsynth.storage import Storage

logger = logging.getLogger(__name__)
DEADLINE_INTERVAL_S = 1.0
ORPHAN_INTERVAL_S = 15.0
RETRY_S = 600.0  # pause before files are removed again after an error


def sweep(state: JobStore, storage: Storage) -> int:
    """Remove expired generations and return their number.

    The record is removed first, so that no client is sent to missing files. The index entry is removed last,
    so that the next sweep continues after a crash. Files that cannot be removed are tried again after
    `RETRY_S`.
    """
    swept = 0
    while ids := state.expired():
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
        if status_view and state.transition(generation_id, Status.EXPIRED, of=[Status.QUEUED]):
            withdraw(state.redis, generation_id, state.get(generation_id).model)
            ended += 1
        state.drop_deadline(generation_id)
    return ended


def expire_unserved(state: JobStore) -> int:
    """Expire jobs that wait for a model without a worker since `queue_timeout_s`; return their number."""
    served = {info.name for info in state.models() if state.accepts(info)}
    waiting = {i: model for i, model in state.unfinished().items() if model not in served}
    oldest, ended = time.time() - state.queue_timeout_s, 0
    detail = f"no worker served the model for {state.queue_timeout_s:.0f} s"
    error = Problem(code="no_worker", detail=detail).model_dump_json()
    for generation_id, created_at in state.created_at(list(waiting)).items():
        if created_at < oldest and state.transition(
            generation_id, Status.EXPIRED, of=[Status.QUEUED], error=error
        ):
            withdraw(state.redis, generation_id, waiting[generation_id])
            ended += 1
    return ended


def run(settings: Settings, stop: threading.Event) -> None:
    """Sweep every `janitor_interval_s`, check deadlines every second and orphans every 15 s, until `stop`.

    Raises:
        ServeError: no Redis URL.
    """
    if not settings.redis_url:
        raise ServeError("the janitor needs CLIPSYNTH_REDIS_URL; `clipsynth serve` sets it")
    state = JobStore.from_settings(connect(settings.redis_url), settings)
    storage = Storage(settings.results_url)
    orphans = OrphanReconciler(state)
    next_sweep = next_look = time.monotonic()
    while not stop.is_set():
        try:
            if ended := expire(state):
                logger.info("%d queued generations expired", ended)
            if time.monotonic() >= next_look:
                next_look = time.monotonic() + ORPHAN_INTERVAL_S
                orphans.look()
                if ended := expire_unserved(state):
                    logger.warning("%d generations expired: no worker served their model", ended)
            if time.monotonic() >= next_sweep:
                next_sweep = time.monotonic() + settings.janitor_interval_s
                if cut_off := release_stale_reservations(state.redis):
                    logger.info("released the reservations of %d interrupted requests", cut_off)
                if swept := sweep(state, storage):
                    logger.info("removed %d generations", swept)
        except (RedisError, OSError, ClipSynthError):
            logger.warning("sweep not finished; the next one continues", exc_info=True)
        stop.wait(min(DEADLINE_INTERVAL_S, settings.janitor_interval_s))
