"""`clipsynth janitor`: ends what waits beyond its deadline, removes files and records whose time is over, looks for strays. Any number may run."""

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
from clipsynth.schemas.generation import Status
from clipsynth.settings import Settings
from clipsynth.storage import Storage

logger = logging.getLogger(__name__)
DEADLINE_INTERVAL_S = 1.0
STRAY_INTERVAL_S = 15.0
RETRY_S = 600.0  # until files that could not be removed are tried again


def sweep(state: JobStore, storage: Storage) -> int:
    """Remove what has expired and return how many generations that were.

    The record goes first, so that nobody is sent to files that are gone; the entry in the index last, so that a pass that was cut
    off is taken up again. Files that cannot be removed are tried again after `RETRY_S`; those of others do not wait for them.
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
            state.forgotten(generation_id)
            swept += 1
    return swept


def expire(state: JobStore) -> int:
    """End what still waits although its deadline is over, and return how many generations that were."""
    ended = 0
    ids = state.overdue()
    for generation_id, status_view in zip(ids, state.status_views(ids), strict=True):
        if status_view and status_view.status is Status.PROCESSING:
            continue  # its worker sees to it, or loses it, and then it waits again
        if status_view and state.change(generation_id, Status.EXPIRED, of=[Status.QUEUED]):
            withdraw(state.redis, generation_id, state.get(generation_id).model)
            ended += 1
        state.settled(generation_id)
    return ended


def run(settings: Settings, stop: threading.Event) -> None:
    """Sweep once per `janitor_interval_s`, look for deadlines at least every second and for strays every 15 s, until `stop` is set.

    Raises:
        ServeError: no Redis URL.
    """
    if not settings.redis_url:
        raise ServeError("the janitor needs CLIPSYNTH_REDIS_URL; `clipsynth serve` sets it")
    state = JobStore.from_settings(connect(settings.redis_url), settings)
    storage = Storage(settings.results_url)
    orphans = OrphanReconciler(state, settings)
    next_sweep = next_look = time.monotonic()
    while not stop.is_set():
        try:
            if ended := expire(state):
                logger.info("%d generations expired before their turn", ended)
            if time.monotonic() >= next_look:
                next_look = time.monotonic() + STRAY_INTERVAL_S
                orphans.look()
            if time.monotonic() >= next_sweep:
                next_sweep = time.monotonic() + settings.janitor_interval_s
                if cut_off := release_stale_reservations(state.redis):
                    logger.info("gave back the room of %d requests that were cut off", cut_off)
                if swept := sweep(state, storage):
                    logger.info("removed %d generations", swept)
        except (RedisError, OSError, ClipSynthError):
            logger.warning("sweep not finished; the next one goes on", exc_info=True)
        stop.wait(min(DEADLINE_INTERVAL_S, settings.janitor_interval_s))
