"""The servers that are compared, each as a context in which it answers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.serving.accelerator import STEP_S, Request
from benchmarks.serving.client import Http
from benchmarks.serving.idle import free_port
from benchmarks.serving.venvs import environment
from clipsynth.jobs.model_registry import MODEL_TTL_S
from clipsynth.jobs.queue import connect
from clipsynth.jobs.store import JobStore
from clipsynth.services.embedded_redis import EmbeddedRedis
from clipsynth.services.processes import let_threads_sleep
from clipsynth.settings import Settings

START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 20.0
REPOSITORY = Path(__file__).resolve().parents[2]
Options = dict[str, Any]


@dataclass(frozen=True)
class Server:
    """A server that answers.

    Attributes:
        http: returns a new client of it.
        pids: its processes; their children belong to it too.
    """

    http: Callable[[], Http]
    pids: list[int]

    def cpu_s(self) -> dict[str, float]:
        """Return the CPU seconds used so far, by process id."""
        found = {}
        for pid in self.pids:
            process = psutil.Process(pid)
            for one in [process, *process.children(recursive=True)]:
                with contextlib.suppress(psutil.Error):
                    times = one.cpu_times()
                    found[f"{one.pid}"] = times.user + times.system
        return found


def wait_for(http: Callable[[], Http], request: Request, process: subprocess.Popen[bytes]) -> None:
    """Ask until the sound comes.

    Raises:
        RuntimeError: the process has ended, or it takes too long.
    """
    deadline = time.monotonic() + START_TIMEOUT_S
    while process.poll() is None and time.monotonic() < deadline:
        client = http()
        with contextlib.suppress(OSError, EOFError):
            if asyncio.run(client.post(request)):
                return
        time.sleep(0.2)
    raise RuntimeError(f"{process.args} does not answer")


@contextlib.contextmanager
def foreign(name: str, options: Options, request: Request, log: Path) -> Iterator[Server]:
    """LitServe or BentoML, in its own environment."""
    port = free_port()
    http = {
        "litserve": lambda: Http(port, "/predict", {}),
        "bentoml": lambda: Http(port, "/predict", {}, wrap="batch"),
    }[name]
    programs = environment(name)
    module = f"benchmarks.serving.foreign.{name}_server"
    command = {
        "litserve": [str(programs / "python"), "-m", module],
        "bentoml": [
            str(programs / "bentoml"),
            "serve",
            f"{module}:Server",
            "--port",
            str(port),
            "--host",
            "127.0.0.1",
        ],
    }[name]
    options = {"port": port, "packages": sysconfig.get_path("purelib"), **options}
    variables = {
        "COMPARE_OPTIONS": json.dumps(options),
        "PYTHONPATH": str(REPOSITORY),
        "BENTOML_DO_NOT_TRACK": "True",
    }
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, env=os.environ | variables, start_new_session=True, stdout=output, stderr=output
        )
        try:
            wait_for(http, request, process)
            yield Server(http, [process.pid])
        finally:
            end_group(process)


def end_group(process: subprocess.Popen[bytes]) -> None:
    """End a process and its children."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_TIMEOUT_S)


def our_worker(redis_url: str, data_dir: Path, bundle: str | None) -> None:
    """Be our worker, with the simulated model or a bundle."""
    from benchmarks.serving.raw import Canvas
    from worker.main import main, model_info, run

    settings = Settings(redis_url=redis_url, data_dir=data_dir, device="cpu")
    if bundle:
        return main(settings.model_copy(update={"model": Path(bundle)}))
    torch_for_one_thread()
    return run(settings, model_info(Canvas.manifest), lambda _: Canvas(STEP_S))


def plain_rq_worker(redis_url: str, data_dir: Path, bundle: str | None) -> None:
    """Be RQ's SimpleWorker with the same model, and say so to the API."""
    from benchmarks.serving.raw import Canvas
    from benchmarks.serving.throughput import plain_worker
    from worker.main import load, model_info

    let_threads_sleep()
    settings = Settings(redis_url=redis_url, data_dir=data_dir, device="cpu")
    if bundle:
        predictor: Any = load(settings.model_copy(update={"model": Path(bundle)}))
    else:
        torch_for_one_thread()
        predictor = Canvas(STEP_S)
    state = JobStore.from_settings(connect(redis_url), settings)

    def announce() -> None:
        while True:
            state.announce(model_info(predictor.manifest))
            time.sleep(MODEL_TTL_S / 3)

    threading.Thread(target=announce, daemon=True).start()
    plain_worker(redis_url, data_dir, predictor)


def torch_for_one_thread() -> None:
    """What the sampler does for a simulated model is too little for two."""
    import torch

    torch.set_num_threads(1)


@contextlib.contextmanager
def ours(work: Callable[..., None], options: Options, request: Request, log: Path) -> Iterator[Server]:
    """Our API, a worker and Redis (`appendfsync always`), a process each."""
    port = free_port()
    headers = {"Prefer": "wait=60", "Accept": "audio/wav"}

    def http() -> Http:
        return Http(port, "/v1/generations", headers)

    with tempfile.TemporaryDirectory(prefix="compare-") as name, log.open("ab") as output:
        folder = Path(name)
        redis = EmbeddedRedis(folder)
        worker = multiprocessing.get_context("spawn").Process(
            target=work, args=(redis.url, folder, options["bundle"]), daemon=True
        )
        worker.start()
        variables = {
            "CLIPSYNTH_REDIS_URL": redis.url,
            "CLIPSYNTH_DATA_DIR": str(folder),
            "CLIPSYNTH_PORT": str(port),
            "CLIPSYNTH_RATE_PER_S": "0",
        }
        command = [sys.executable, "-m", "clipsynth.cli", "api"]
        api = subprocess.Popen(
            command, env=os.environ | variables, stdout=output, stderr=output, cwd=REPOSITORY
        )
        try:
            wait_for(http, request, api)
            yield Server(http, [p for p in (api.pid, worker.pid, redis.process.pid) if p])
        finally:
            api.terminate()
            api.wait()
            worker.kill()
            worker.join()
            redis.stop()


WORKERS = {"ours": our_worker, "rq": plain_rq_worker}


def contender(name: str, options: Options, request: Request, log: Path) -> AbstractContextManager[Server]:
    """Return a server by its name; `request` is what it is first asked for."""
    work = WORKERS.get(name)
    return ours(work, options, request, log) if work else foreign(name, options, request, log)
