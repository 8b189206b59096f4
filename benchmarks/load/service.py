"""A whole service for benchmarks: a real Redis, the API as it is served, workers; each a process."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import psutil

from clipsynth.jobs.queue import connect
from clipsynth.jobs.store import JobStore
from clipsynth.services.embedded_redis import EmbeddedRedis
from clipsynth.services.processes import wait_until
from clipsynth.settings import Settings

START_S = 120
# Settings of an API that refuses nothing.
UNLIMITED = {
    "rate_per_s": 0,
    "max_inflight": 0,
    "max_queued": 10**9,
    "max_backlog_s": 1e12,
    "kept_bytes_per_key": 0,
}


def simulated_worker(step_s: float = 0.001, rows: int = 32) -> tuple[str, ...]:
    """Return the arguments of Python that run a worker with the simulated model."""
    return "-m", "benchmarks.load.simulated", str(step_s), str(rows)


SIMULATED = simulated_worker()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class ServiceProcesses:
    """Redis and Python processes with the same settings in a new folder; a context manager that ends them."""

    def __init__(self, **settings: object) -> None:
        self._stack = ExitStack()
        self.folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="service-")))
        self.server = EmbeddedRedis(self.folder)
        self._stack.callback(self.server.stop)
        self.redis = connect(self.server.url)
        self._stack.callback(self.redis.close)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        own = {"redis_url": self.server.url, "data_dir": self.folder, "port": self.port, **settings}
        self.variables = {f"CLIPSYNTH_{name.upper()}": str(value) for name, value in own.items()}
        self.settings = Settings(redis_url=self.server.url, data_dir=self.folder)
        self.state = JobStore.from_settings(self.redis, self.settings)
        self.log = self.folder / "processes.log"
        self.processes = {"redis": psutil.Process(self.server.process.pid)}

    def start(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        """Start Python with arguments, under a name."""
        command, environment = [sys.executable, *arguments], os.environ | self.variables
        with self.log.open("ab") as log:
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        self._stack.callback(process.wait, 60)
        self._stack.callback(process.terminate)
        self.processes[name] = psutil.Process(process.pid)
        return process

    def ready(self, *, model: bool) -> bool:
        """Return whether the API answers, and the model is ready where one is expected."""
        known = not model or any(m.status == "ready" for m in self.state.models())
        with contextlib.suppress(httpx.TransportError):
            # Without a worker the API is never ready.
            return known and httpx.get(f"{self.url}/{'readyz' if model else 'livez'}").is_success
        return False

    def rss(self, name: str = "api") -> int:
        return int(self.processes[name].memory_info().rss)

    def cpu_s(self, name: str = "api") -> float:
        return sum(self.processes[name].cpu_times()[:2])

    def ended(self) -> int:
        """Return how many generations have ended since Redis started."""
        return sum(self.state.ended().values())

    def post(self, body: bytes) -> bytes:
        """Return the resource of a new generation as JSON."""
        headers = {"Content-Type": "application/json"}
        answer = httpx.post(f"{self.url}/v1/generations", content=body, headers=headers)
        return answer.raise_for_status().content

    def __enter__(self) -> ServiceProcesses:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


@contextmanager
def running(
    worker: Sequence[str] | None = SIMULATED,
    *,
    also: Sequence[str] = (),
    api_cores: set[int] | None = None,
    **settings: object,
) -> Iterator[ServiceProcesses]:
    """Run an API and a worker until the block ends.

    Args:
        worker: arguments of Python; None for no worker.
        also: more commands of `clipsynth` to run.
        settings: by their names in clipsynth/settings.py.
    """
    with ServiceProcesses(**settings) as service:
        api = service.start("api", "-m", "clipsynth.cli", "api")
        if api_cores:
            psutil.Process(api.pid).cpu_affinity(sorted(api_cores))
        if worker:
            service.start("worker", *worker)
        for name in also:
            service.start(name, "-m", "clipsynth.cli", name)
        started = wait_until(lambda: service.ready(model=bool(worker)), timeout_s=START_S)
        assert started, f"the service does not start: {service.log.read_text()}"
        yield service
