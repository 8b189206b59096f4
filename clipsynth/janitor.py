"""`clipsynth janitor`: removes the files and records of generations whose time is over. Any number of them may run."""

from __future__ import annotations

import logging
import threading

from redis.exceptions import RedisError

from clipsynth.errors import ServeError
from clipsynth.queue import connect
from clipsynth.settings import Settings
from clipsynth.state import State
from clipsynth.storage import Storage

logger = logging.getLogger(__name__)


def sweep(state: State, storage: Storage) -> int:
    """Remove what has expired and return how many generations that were.

    The record goes first, so that nobody is sent to files that are gone; the entry in the index last, so that a pass that was cut
    off is taken up again.
    """
    swept = 0
    while ids := state.expired():
        for generation_id in ids:
            state.forget(generation_id)
            storage.delete(generation_id)
            state.forgotten(generation_id)
        swept += len(ids)
    return swept


def run(settings: Settings, stop: threading.Event) -> None:
    """Sweep once per `janitor_interval_s` until `stop` is set.

    Raises:
        ServeError: no Redis URL.
    """
    if not settings.redis_url:
        raise ServeError("the janitor needs CLIPSYNTH_REDIS_URL; `clipsynth serve` sets it")
    state = State.from_settings(connect(settings.redis_url), settings)
    storage = Storage(settings.results_url)
    while not stop.is_set():
        try:
            if swept := sweep(state, storage):
                logger.info("removed %d generations", swept)
        except (RedisError, OSError):
            logger.warning("sweep not finished; the next one goes on", exc_info=True)
        stop.wait(settings.janitor_interval_s)
