"""A whole service in processes of its own for fuzzers and loads: real Redis, the API as it is served, workers with the simulated model."""

from __future__ import annotations

import multiprocessing
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import httpx
import psutil
from redis import Redis

from clipsynth.jobs.queue import connect
from clipsynth.jobs.store import JobStore
from clipsynth.services.embedded_redis import EmbeddedRedis
from clipsynth.services.processes import wait_until
from clipsynth.settings import Settings

START_S = 60


def work(*arguments: Any, **settings: Any) -> None:
    """Be a worker process: this one loads torch."""
    from benchmarks.serving import simulated

    simulated.work(*arguments, **settings)


@dataclass(frozen=True)
class Service:
    """What runs, and how to reach it."""

    url: str
    port: int
    redis: Redis
    state: JobStore
    api: psutil.Process
    log: Path

    def api_rss(self) -> int:
        """Return the API's resident memory in bytes."""
        return int(self.api.memory_info().rss)

    def post(self, body: bytes) -> bytes:
        """Return the resource of a new generation as JSON."""
        answer = httpx.post(
            f"{self.url}/v1/generations", content=body, headers={"Content-Type": "application/json"}
        )
        return answer.raise_for_status().content


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def running(
    *, workers: int = 1, step_s: float = 0.001, api_cores: set[int] | None = None, **settings: object
) -> Iterator[Service]:
    """Run a service until the block ends.

    Args:
        step_s: of the simulated model.
        api_cores: where the API alone may run.
        settings: of the API, by their names in clipsynth/settings.py.
    """
    with tempfile.TemporaryDirectory(prefix="service-") as folder:
        server = EmbeddedRedis(Path(folder))
        port = free_port()
        own = {f"CLIPSYNTH_{name.upper()}": str(value) for name, value in settings.items()}
        environment = os.environ | {
            "CLIPSYNTH_REDIS_URL": server.url,
            "CLIPSYNTH_DATA_DIR": folder,
            "CLIPSYNTH_PORT": str(port),
            **own,
        }
        context = multiprocessing.get_context("spawn")
        hands: list[BaseProcess] = [
            context.Process(target=work, args=(server.url, Path(folder), step_s), daemon=True)
            for _ in range(workers)
        ]
        log = Path(folder) / "api.log"
        with log.open("wb") as output:
            command = [sys.executable, "-m", "clipsynth.cli", "api"]
            api = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
        redis = connect(server.url)
        try:
            for hand in hands:
                hand.start()
            if api_cores:
                psutil.Process(api.pid).cpu_affinity(sorted(api_cores))
            url = f"http://127.0.0.1:{port}"
            service = Service(
                url, port, redis, JobStore.from_settings(redis, Settings()), psutil.Process(api.pid), log
            )
            if not wait_until(lambda: _answers(service, ready=bool(workers)), timeout_s=START_S):
                raise TimeoutError(f"the service does not start: {log.read_text()}")
            yield service
        finally:
            for hand in hands:
                hand.terminate()
            api.terminate()
            api.wait()
            for hand in hands:
                hand.join()
            redis.close()
            server.stop()


def _answers(service: Service, *, ready: bool) -> bool:
    try:
        if httpx.get(f"{service.url}/readyz").status_code != 200:
            return False
    except httpx.TransportError:
        return False
    return not ready or any(model.status == "ready" for model in service.state.models())
