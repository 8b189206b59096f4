"""The API as it is served: uvicorn on a socket, in a thread."""

from __future__ import annotations

import socket
import threading
from contextlib import contextmanager

import uvicorn
from redis import Redis

from app.server import config
from clipsynth.jobs.store import JobStore
from clipsynth.services.processes import wait_until
from clipsynth.settings import Settings
from tests.support.api_client import INFO


@contextmanager
def api_server(redis_url, data_dir, **options):
    """Serve with these settings and a model, and yield the port."""
    settings = Settings(redis_url=redis_url, data_dir=data_dir, **options)
    with Redis.from_url(redis_url) as redis, socket.socket() as listener:
        redis.flushall()
        JobStore.from_settings(redis, settings).announce(INFO)
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(config(settings))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            assert wait_until(lambda: server.started, timeout_s=10, interval_s=0.005)
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()
