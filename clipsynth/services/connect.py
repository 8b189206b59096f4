"""A Redis client for commands.

From the settings, of a running `serve`, or of a server started for the command.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from redis import Redis

from clipsynth.jobs.queue import connect, is_redis_up
from clipsynth.services.embedded_redis import EmbeddedRedis, running_url
from clipsynth.services.processes import keep_files_private
from clipsynth.services.supervisor import lock_data_dir
from clipsynth.settings import Settings


@contextmanager
def open_redis(settings: Settings) -> Iterator[Redis]:
    """Yield a client.

    Raises:
        ServeError: a `serve` whose Redis does not answer has locked the data folder.
    """
    keep_files_private()
    url = settings.redis_url or running_url(settings.data_dir)
    if url:
        with connect(url) as redis:
            if settings.redis_url or is_redis_up(redis):
                yield redis
                return
    with lock_data_dir(settings.data_dir) as lock:
        server = EmbeddedRedis(settings.data_dir, lock=lock)
        try:
            with connect(server.url) as redis:
                yield redis
        finally:
            server.stop()
