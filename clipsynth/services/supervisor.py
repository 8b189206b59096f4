"""`clipsynth serve`: run Redis, API, worker, janitor and webhooks as child processes.

A child that ends is started again. SIGINT, SIGTERM and SIGHUP stop all of them.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import IO

from redis.exceptions import RedisError

from clipsynth.errors import ServeError
from clipsynth.jobs.queue import connect
from clipsynth.jobs.store import JobStore
from clipsynth.schemas.model_info import ModelInfo
from clipsynth.services.embedded_redis import EmbeddedRedis
from clipsynth.services.processes import last_line, listen, start_child, wait_until
from clipsynth.settings import Settings
from clipsynth.storage import Storage

logger = logging.getLogger(__name__)
STOP_TIMEOUT_S = 60
LOCK_TIMEOUT_S = 2.0  # the Redis of a killed predecessor ends within this time
MIN_BACKOFF_S, MAX_BACKOFF_S = 1.0, 30.0
# How often it is announced that the model is loaded.
ANNOUNCE_S = 5.0
MAX_LOG_BYTES = 20_000_000
# The metrics ports of the children follow each other.
METRICS_PORTS = {"api": 0, "worker": 1, "janitor": 2, "webhooks": 3}
Say = Callable[[str], None]
TRY = """  try: curl -s -o dog.wav %s/v1/generations -H 'Prefer: wait=60' -H 'Accept: audio/wav' \
-H 'Content-Type: application/json' -d '{"prompt": "a dog barking"}'"""


def lock_data_dir(data_dir: Path) -> IO[str]:
    """Lock the data folder for this process; the lock ends with it.

    Raises:
        ServeError: another `serve` has it, or it cannot be written.
    """
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        if data_dir.stat().st_uid == os.getuid():  # it holds prompts and secrets, also of earlier versions
            data_dir.chmod(0o700)
        lock = (data_dir / "serve.lock").open("w")
    except OSError as error:
        raise _unusable(data_dir, error.strerror) from error
    if not wait_until(lambda: _locked(lock), timeout_s=LOCK_TIMEOUT_S):
        raise ServeError(
            f"another `clipsynth serve` uses {data_dir}; give this one its own with CLIPSYNTH_DATA_DIR"
        )
    return lock


def _unusable(data_dir: Path, reason: str | None) -> ServeError:
    return ServeError(
        f"the data folder {data_dir} cannot be used ({reason}); choose another with CLIPSYNTH_DATA_DIR"
    )


def _locked(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def serve(settings: Settings, info: ModelInfo, say: Say) -> int:
    """Run until SIGINT, SIGTERM or SIGHUP; return the exit code.

    Args:
        info: the bundle of the settings, as its worker will describe it.
        say: shows a line on the terminal; JSON logs get these lines instead.

    Raises:
        ServeError: a port is taken, the data folder is locked or cannot be used, Redis cannot start, or the
            worker cannot use the bundle.
    """
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # `nohup` has SIGHUP ignored.
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda *_: stop.set())
    for port in _metrics_ports(settings.metrics_port).values():
        listen(settings.metrics_address, int(port)).close()
    # A connection to this socket waits until the API is up, also while it is started again.
    with listen(settings.host, settings.port) as listener, lock_data_dir(settings.data_dir) as lock:
        try:
            logs = _make_folders(settings)
            redis = None if settings.redis_url else EmbeddedRedis.of(settings, lock)
        except OSError as error:
            raise _unusable(settings.data_dir, error.strerror) from error
        redis_url = redis.url if redis else settings.redis_url
        port = listener.getsockname()[1]
        settings = settings.model_copy(update={"port": port, "redis_url": redis_url})
        try:
            announcer = _Announcer(settings, info, say if logs else logger.info)
            _run(settings, announcer, listener, redis, logs, stop)
        finally:
            if redis:
                redis.stop()
    return 0


def _run(
    settings: Settings,
    announcer: _Announcer,
    listener: socket.socket,
    redis: EmbeddedRedis | None,
    logs: Path | None,
    stop: threading.Event,
) -> None:
    environment = {
        "CLIPSYNTH_REDIS_URL": settings.redis_url or "",
        "CLIPSYNTH_DATA_DIR": str(settings.data_dir),
        "CLIPSYNTH_MODEL": str(settings.model),
        "CLIPSYNTH_HOST": settings.host,
        "CLIPSYNTH_PORT": str(settings.port),
        "CLIPSYNTH_DEVICE": settings.device,
    }
    ports = _metrics_ports(settings.metrics_port)
    announcer.begin()
    children = []
    redis_due, redis_backoff = 0.0, _Backoff()
    try:
        for name in ("worker", "api", "janitor", "webhooks"):
            own = environment | {"CLIPSYNTH_METRICS_PORT": ports.get(name, "")}
            fds = [listener.fileno()] if name == "api" else []
            children.append(_Child(name, own, logs and logs / f"{name}.log", fds))
        while not stop.wait(0.2):
            if redis and not redis.is_running() and time.monotonic() >= redis_due:
                logger.warning("redis-server ended with code %s; restarting it", redis.process.returncode)
                try:
                    redis.start()
                except ServeError as error:  # for example while the disk is full
                    logger.error("%s", error)
                redis_due = time.monotonic() + redis_backoff.next_s(0.0)
            for child in children:
                child.look_after()
            announcer.look(is_loading=children[0].process.poll() is None)
    finally:
        _stop([child.process for child in children])
        announcer.end()


def _make_folders(settings: Settings) -> Path | None:
    """Make the folders for results and logs, and write to them.

    Returns:
        The folder for the children's logs; None if they go to stderr, as JSON lines do.

    Raises:
        OSError, ServeError: a folder or the URL for results cannot be used.
    """
    Storage(settings.results_url)
    results = settings.data_dir / "results" if settings.storage_url is None else None
    logs = settings.data_dir / "log" if settings.log_format == "text" else None
    for folder in filter(None, (results, logs)):
        folder.mkdir(exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    return logs


def _metrics_ports(port: int | None) -> dict[str, str]:
    """Return the metrics port of each child that has one; each needs its own."""
    if port is None:
        return {}
    return {name: str(port + n if port else 0) for name, n in METRICS_PORTS.items()}


class _Announcer:
    """Announces the model as starting until its worker serves it, and says so on the terminal."""

    def __init__(self, settings: Settings, info: ModelInfo, say: Say) -> None:
        self.settings, self.info, self.say = settings, info, say
        self.state = JobStore.from_settings(connect(settings.redis_url or ""), settings)
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        self.url = f"http://{host}:{settings.port}"
        self._is_ready, self._due = False, 0.0

    def begin(self) -> None:
        """Announce the model: from now on the API accepts jobs for it."""
        self.state.announce_starting(self.info)
        self.say(f"API at {self.url}, loading model {self.info.name}")
        self.say(TRY % self.url)
        self.say(f"  data in {self.settings.data_dir}; logs in its folder `log`")

    def look(self, *, is_loading: bool) -> None:
        """Renew the announcement while the worker loads; say once that a sound can be made."""
        try:
            if is_loading and time.monotonic() >= self._due:
                self.state.renew_starting(self.info.name)
                self._due = time.monotonic() + ANNOUNCE_S
            if not self._is_ready:
                self._look_for_ready()
        except RedisError as error:
            logger.warning("Redis: %s", error)

    def _look_for_ready(self) -> None:
        ready = [model for model in self.state.models() if model.name == self.info.name]
        if not ready or ready[0].status != "ready" or not self._api_answers():
            return
        self._is_ready = True
        self.say(f"model {self.info.name} on {ready[0].device or 'an unknown device'}, {ready[0].precision}")
        self.say("ready")

    def _api_answers(self) -> bool:
        """Ask our own child: no other process can listen on this port."""
        # Compared, not bound.
        any_address = self.settings.host in ("0.0.0.0", "::")  # noqa: S104
        url = f"http://localhost:{self.settings.port}" if any_address else self.url
        try:
            with urllib.request.urlopen(f"{url}/readyz", timeout=1) as response:
                return bool(response.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def end(self) -> None:
        """Withdraw the announcement."""
        try:
            self.state.announce_stopped(self.info.name)
        except RedisError as error:
            logger.warning("Redis: %s", error)


class _Backoff:
    """A growing pause between starts, short again after a process ran for a while."""

    def __init__(self) -> None:
        self._seconds = MIN_BACKOFF_S

    def next_s(self, ran_s: float) -> float:
        """Return the pause after a process that ran for `ran_s`."""
        seconds = MIN_BACKOFF_S if ran_s > MAX_BACKOFF_S else self._seconds
        self._seconds = min(2 * seconds, MAX_BACKOFF_S)
        return seconds


class _Child:
    """A process that is started again when it ends, with a growing pause unless it ran for a while."""

    def __init__(
        self, name: str, environment: dict[str, str], log: Path | None = None, fds: list[int] | None = None
    ) -> None:
        """Start it.

        Args:
            log: file for its output; stderr by default.
            fds: listening sockets for it.
        """
        self.name, self.environment, self.log, self.fds = name, environment, log, fds or []
        self.backoff = _Backoff()
        self.starts = 0
        self._start()

    def _start(self) -> None:
        self.starts += 1
        self.restart_at: float | None = None
        self.started_at = time.monotonic()
        if self.log and self.log.is_file() and self.log.stat().st_size > MAX_LOG_BYTES:
            self.log.replace(self.log.with_suffix(".log.1"))
        command = [sys.executable, "-m", "clipsynth.cli", self.name]
        command += [word for fd in self.fds for word in ("--fd", str(fd))]
        self.process = start_child(command, self.environment, keep_open=self.fds, log=self.log)

    def look_after(self) -> None:
        """Start the process again if it has ended and its pause is over; cut its log.

        Raises:
            ServeError: at the first start it cannot use its bundle. After a later start it is tried again,
                because a file may come back.
        """
        code = self.process.poll()
        now = time.monotonic()
        if code is None:
            self._cut_log()
            return
        if code == os.EX_CONFIG and self.starts == 1:
            model = self.environment["CLIPSYNTH_MODEL"]
            why = last_line(self.log) if self.log else "its message is above"
            raise ServeError(f"the {self.name} cannot use the model {model}; {why}")
        if self.restart_at is None:
            pause_s = self.backoff.next_s(now - self.started_at)
            where = f"; see {self.log}" if self.log else ""
            logger.warning("%s ended with code %s; restarting in %.0f s%s", self.name, code, pause_s, where)
            self.restart_at = now + pause_s
        elif now >= self.restart_at:
            self._start()

    def _cut_log(self) -> None:
        """Move the content of a long log to `….log.1`; the process keeps its file open."""
        if self.log and self.log.stat().st_size > MAX_LOG_BYTES:
            shutil.copyfile(self.log, self.log.with_suffix(".log.1"))
            os.truncate(self.log, 0)


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
