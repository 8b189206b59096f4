"""Cut the network of a worker or of Redis for a while. Needs root and Linux.

    sudo python -m benchmarks.chaos.partition --cut worker          # one of two workers loses Redis
    sudo python -m benchmarks.chaos.partition --cut redis           # all lose it

Two workers and Redis run on network namespaces of their own. A cut drops packets, so connections hang and do
not break. Ends with code 1 unless every job succeeded, complete and once.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Literal

import typer

from benchmarks.chaos.hosts import Host, network
from benchmarks.chaos.verdict import verdict
from benchmarks.load.service import simulated_worker
from benchmarks.load.workload import MODEL, payload
from clipsynth.jobs.queue import connect, get_queue, is_redis_up
from clipsynth.jobs.store import JobStore, new_id
from clipsynth.schemas.generation import Status
from clipsynth.services.embedded_redis import find_redis_server
from clipsynth.services.processes import wait_until
from clipsynth.settings import Settings
from clipsynth.storage import Storage

STUCK_S = 180.0


def start_redis(host: Host, folder: Path) -> subprocess.Popen[bytes]:
    options = ["--port", "6379", "--bind", host.address, "--protected-mode", "no", "--dir", str(folder)]
    options += ["--appendonly", "yes", "--appendfsync", "always", "--save", "", "--loglevel", "warning"]
    return subprocess.Popen(host.command(find_redis_server(), *options), stdout=subprocess.DEVNULL)


def start_worker(host: Host, url: str, folder: Path) -> subprocess.Popen[bytes]:
    variables = os.environ | {"CLIPSYNTH_REDIS_URL": url, "CLIPSYNTH_DATA_DIR": str(folder)}
    command = host.command(sys.executable, *simulated_worker(0.05))
    with (folder / f"{host.name}.log").open("ab") as log:
        return subprocess.Popen(command, env=variables, stdout=log, stderr=log)


def run(folder: Path, *, cut: str, jobs: int, cut_s: float) -> dict[str, int]:
    """Submit jobs, cut and mend the link; return what became of the jobs."""
    with network("redis", "one", "two") as hosts:
        url = f"redis://{hosts['redis'].address}:6379"
        processes = [start_redis(hosts["redis"], folder)]
        redis = connect(url)
        try:
            assert wait_until(lambda: is_redis_up(redis), timeout_s=30)
            settings = Settings(redis_url=url, data_dir=folder)
            state = JobStore.from_settings(redis, settings)
            processes += [start_worker(hosts[name], url, folder) for name in ("one", "two")]
            workers = f"rq:workers:{get_queue(MODEL, redis).name}"
            assert wait_until(lambda: redis.scard(workers) == 2, timeout_s=60)
            ids = [new_id() for _ in range(jobs)]
            for generation_id in ids:
                job = payload(num_inference_steps=40, num_outputs=2)
                state.submit(generation_id, job)

            def ended() -> int:
                return sum(state.ended().values())

            assert wait_until(lambda: ended() > jobs // 10, timeout_s=60)
            host = hosts["redis" if cut == "redis" else "one"]
            host.plug(in_=False)
            time.sleep(cut_s)
            host.plug(in_=True)
            assert wait_until(lambda: is_redis_up(redis), timeout_s=30)
            before, mended = ended(), time.monotonic()
            wait_until(lambda: ended() >= jobs, timeout_s=STUCK_S)
            took_s = time.monotonic() - mended
            expected = dict.fromkeys(ids, Status.SUCCEEDED)
            return {
                "had ended at the mending": before,
                "seconds from then to the last": round(took_s),
                "workers that live": sum(p.poll() is None for p in processes[1:]),
                **verdict(redis, state, Storage(settings.results_url), expected),
            }
        finally:
            for process in reversed(processes):
                process.terminate()
            for process in reversed(processes):
                process.wait(60)


def main(cut: Literal["worker", "redis"] = "worker", jobs: int = 600, cut_s: float = 30.0) -> None:
    """Cut the link of one worker or of Redis for `cut_s` seconds while jobs run."""
    with tempfile.TemporaryDirectory() as name:
        figures = run(Path(name), cut=cut, jobs=jobs, cut_s=cut_s)
    print(figures)
    raise SystemExit(figures["faults"] > 0)


if __name__ == "__main__":
    typer.run(main)
