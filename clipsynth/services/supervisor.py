"""`clipsynth serve`: run Redis, API, worker, janitor and webhooks as child processes.

A child that ends is started again. SIGINT and SIGTERM stop all of them.
"""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import IO

from clipsynth.errors import ServeError
from clipsynth.services.embedded_redis import EmbeddedRedis
from clipsynth.services.processes import start_child, wait_until
from clipsynth.settings import Settings

logger = logging.getLogger(__name__)
STOP_TIMEOUT_S = 60
LOCK_TIMEOUT_S = 2.0  # the Redis of a killed predecessor ends within this time
MIN_BACKOFF_S, MAX_BACKOFF_S = 1.0, 30.0
TRY = """ready at %s
  try: curl -s %s/v1/generations -H 'content-type: application/json' -d '{"prompt": "a dog barking"}'"""


def lock_data_dir(data_dir: Path) -> IO[str]:
    """Lock the data folder for this process; the lock ends with it.

    Raises:
        ServeError: another `serve` has it.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    lock = (data_dir / "serve.lock").open("w")
    if not wait_until(lambda: _locked(lock), timeout_s=LOCK_TIMEOUT_S):
        raise ServeError(
            f"another `clipsynth serve` uses {data_dir}; give this one its own with CLIPSYNTH_DATA_DIR"
        )
    return lock


def _locked(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=1) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def serve(settings: Settings) -> int:
    """Run until SIGINT or SIGTERM; return the exit code.

    Raises:
        ServeError: the data folder is locked, Redis cannot start, or the worker cannot use the bundle.
    """
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with lock_data_dir(settings.data_dir) as lock:
        redis = (
            None
            if settings.redis_url
            else EmbeddedRedis(settings.data_dir, lock=lock, max_bytes=settings.redis_max_bytes)
        )
        environment = {
            "CLIPSYNTH_REDIS_URL": settings.redis_url or (redis.url if redis else ""),
            "CLIPSYNTH_DATA_DIR": str(settings.data_dir),
            "CLIPSYNTH_MODEL": str(settings.model),
            "CLIPSYNTH_HOST": settings.host,
            "CLIPSYNTH_PORT": str(settings.port),
            "CLIPSYNTH_DEVICE": settings.device,
        }
        ports = _metrics_ports(settings.metrics_port)
        children = [
            _Child(name, environment | {"CLIPSYNTH_METRICS_PORT": ports.get(name, "")})
            for name in ("worker", "api", "janitor", "webhooks")
        ]
        url = f"http://{settings.host}:{settings.port}"
        announced = False
        try:
            while not stop.wait(0.2):
                if redis and not redis.is_running():
                    logger.warning("redis-server ended with code %s; restarting it", redis.process.returncode)
                    redis.start()
                for child in children:
                    child.look_after()
                if not announced and _ready(url):
                    announced = True
                    logger.info(TRY, url, url)
        finally:
            _stop([child.process for child in children])
            if redis:
                redis.stop()
    return 0


def _metrics_ports(port: int | None) -> dict[str, str]:
    """Return the metrics port of each child that has one; each needs its own."""
    if port is None:
        return {}
    return {"api": str(port), "worker": str(port + 1 if port else 0)}


class _Child:
    """A process that is started again when it ends, with a growing pause unless it ran for a while."""

    def __init__(self, name: str, environment: dict[str, str]) -> None:
        self.name, self.environment = name, environment
        self.backoff_s = MIN_BACKOFF_S
        self.starts = 0
        self._start()

    def _start(self) -> None:
        self.starts += 1
        self.restart_at: float | None = None
        self.started_at = time.monotonic()
        self.process = start_child([sys.executable, "-m", "clipsynth.cli", self.name], self.environment)

    def look_after(self) -> None:
        """Start the process again if it has ended and its pause is over.

        Raises: ServeError: at the first start it cannot use its bundle. After a later start it is tried
            again, because a file may come back.
        """
        code = self.process.poll()
        now = time.monotonic()
        if code is None:
            return
        if code == os.EX_CONFIG and self.starts == 1:
            model = self.environment["CLIPSYNTH_MODEL"]
            raise ServeError(f"the {self.name} cannot use the model {model}; its message is above")
        if self.restart_at is None:
            if now - self.started_at > MAX_BACKOFF_S:
                self.backoff_s = MIN_BACKOFF_S
            logger.warning("%s ended with code %s; restarting in %.0f s", self.name, code, self.backoff_s)
            self.restart_at = now + self.backoff_s
            self.backoff_s = min(2 * self.backoff_s, MAX_BACKOFF_S)
        elif now >= self.restart_at:
            self._start()


def _stop(children: list[subprocess.Popen[bytes]]) -> None:
    """Terminate all children, wait, and kill the remaining ones."""
    for child in children:
        if child.poll() is None:
            child.terminate()
    deadline = time.monotonic() + STOP_TIMEOUT_S
    for child in children:
        try:
            child.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            logger.warning("%s did not stop in %d s; killing it", child.args, STOP_TIMEOUT_S)
            child.kill()
            child.wait()
