"""`clipsynth serve`: Redis (if none is given), API and worker as children; restarts those that die, stops all of them cleanly."""

from __future__ import annotations

import fcntl
import logging
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import IO

from clipsynth.embedded_redis import EmbeddedRedis
from clipsynth.errors import ServeError
from clipsynth.process import start_child
from clipsynth.settings import Settings

logger = logging.getLogger(__name__)
STOP_TIMEOUT_S = 60
MAX_BACKOFF_S = 30.0


def lock_data_dir(data_dir: Path) -> IO[str]:
    """Take the data folder for this process; the lock ends with it.

    Raises:
        ServeError: another `serve` has it.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    lock = (data_dir / "serve.lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise ServeError(
            f"another `clipsynth serve` uses {data_dir}; give this one its own with CLIPSYNTH_DATA_DIR"
        ) from None
    return lock


def _ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=1) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def serve(settings: Settings) -> int:
    """Run until SIGINT or SIGTERM; return the exit code.

    Raises:
        ServeError: the data folder is taken, or Redis cannot be started.
    """
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with lock_data_dir(settings.data_dir):
        redis = None if settings.redis_url else EmbeddedRedis(settings.data_dir)
        environment = {
            "CLIPSYNTH_REDIS_URL": settings.redis_url or (redis.url if redis else ""),
            "CLIPSYNTH_DATA_DIR": str(settings.data_dir),
            "CLIPSYNTH_MODEL": str(settings.model),
            "CLIPSYNTH_HOST": settings.host,
            "CLIPSYNTH_PORT": str(settings.port),
            "CLIPSYNTH_DEVICE": settings.device,
        }
        children = {name: start_child(_command(name), environment) for name in ("worker", "api")}
        restart_at: dict[str, float] = {}
        backoff_s = dict.fromkeys(children, 1.0)
        url = f"http://{settings.host}:{settings.port}"
        announced = False
        try:
            while not stop.wait(0.2):
                if redis and redis.process.poll() is not None:
                    raise ServeError("the embedded redis-server has ended; start again, its data are kept")
                for name, child in children.items():
                    if child.poll() is None:
                        continue
                    if name not in restart_at:
                        logger.warning(
                            "%s ended with code %s; restarting in %.0f s",
                            name,
                            child.returncode,
                            backoff_s[name],
                        )
                        restart_at[name] = time.monotonic() + backoff_s[name]
                        backoff_s[name] = min(2 * backoff_s[name], MAX_BACKOFF_S)
                    elif time.monotonic() >= restart_at[name]:
                        del restart_at[name]
                        children[name] = start_child(_command(name), environment)
                if not announced and _ready(url):
                    announced = True
                    logger.info(
                        "ready at %s\n  try: curl -s %s/v1/generations -H 'content-type: application/json' -d '{\"prompt\": \"a dog barking\"}'",
                        url,
                        url,
                    )
        finally:
            _stop(children)
            if redis:
                redis.stop()
    return 0


def _command(name: str) -> list[str]:
    return [sys.executable, "-m", "clipsynth.cli", name]


def _stop(children: dict[str, subprocess.Popen[bytes]]) -> None:
    """Ask all children to end, wait, and kill what does not."""
    for child in children.values():
        if child.poll() is None:
            child.terminate()
    deadline = time.monotonic() + STOP_TIMEOUT_S
    for name, child in children.items():
        try:
            child.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            logger.warning("%s did not stop in %d s; killing it", name, STOP_TIMEOUT_S)
            child.kill()
            child.wait()
