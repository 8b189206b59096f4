"""Two workers and Redis on three hosts: is anything lost when a link is cut for 30 s?

    sudo python -m benchmarks.scale.partition --cut worker          # one worker loses Redis
    sudo python -m benchmarks.scale.partition --cut redis           # everybody does

The hosts are network namespaces with addresses of their own on one bridge; a cut drops packets, so connections hang rather than break. Leases are
the default 15 s. The model is simulated, the rest is real. Ends with code 1 unless every job succeeded, whole and once.
"""

from __future__ import annotations

import argparse
import collections
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from redis import Redis
from redis.exceptions import RedisError

from benchmarks.scale.hosts import SUBNET, Host, network
from benchmarks.serving.load import MANIFEST, look, payload
from clipsynth.errors import NotFound
from clipsynth.jobs.queue import connect, enqueue, get_queue
from clipsynth.jobs.store import JobStore, is_redis_up, new_id
from clipsynth.schemas.generation import TERMINAL, Status
from clipsynth.services.embedded_redis import find_redis_server
from clipsynth.services.processes import wait_until
from clipsynth.settings import Settings
from clipsynth.storage import Storage, audio_key

STEP_S = 0.05
STUCK_S = 180.0


def start_redis(host: Host, folder: Path) -> subprocess.Popen[bytes]:
    options = ["--port", "6379", "--bind", host.address, "--protected-mode", "no", "--dir", str(folder)]
    options += ["--appendonly", "yes", "--appendfsync", "always", "--save", "", "--loglevel", "warning"]
    return subprocess.Popen(host.command(find_redis_server(), *options), stdout=subprocess.DEVNULL)


def start_worker(host: Host, url: str, folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "benchmarks.scale.worker", url, str(folder), str(STEP_S)]
    with (folder / f"{host.name}.log").open("ab") as log:
        return subprocess.Popen(host.command(*command), stdout=log, stderr=log)


def submit(redis: Redis, state: JobStore, settings: Settings, jobs: int) -> list[str]:
    ids = [new_id() for _ in range(jobs)]
    for generation_id in ids:
        enqueue(redis, state, generation_id, payload(num_inference_steps=40, num_outputs=2), settings)
    return ids


def whole(state: JobStore, storage: Storage, generation_id: str) -> bool:
    """Return whether both outputs are listed and stored."""
    try:
        found = state.get(generation_id)
        for n in range(2):
            storage.get(audio_key(generation_id, n, "wav"))
    except NotFound:
        return False
    return [o.index for o in found.outputs] == [0, 1]


def run(folder: Path, *, cut: str, jobs: int, cut_s: float) -> dict[str, int | float]:
    """Submit, cut, mend, and return what became of the jobs; all from "lost" on must be 0."""
    with network("redis", "one", "two") as hosts:
        url = f"redis://{hosts['redis'].address}:6379"
        processes = [start_redis(hosts["redis"], folder)]
        redis = connect(url)
        try:
            assert wait_until(lambda: is_redis_up(redis), timeout_s=30)
            settings = Settings(redis_url=url, data_dir=folder)
            state, storage = JobStore.from_settings(redis, settings), Storage(settings.results_url)
            processes += [start_worker(hosts[name], url, folder) for name in ("one", "two")]
            workers = f"rq:workers:{get_queue(MANIFEST.name, redis).name}"
            assert wait_until(lambda: redis.scard(workers) == 2, timeout_s=60)
            ids = submit(redis, state, settings, jobs)

            def ended() -> int:
                return sum(state.ended().values())

            assert wait_until(lambda: ended() > jobs // 10, timeout_s=60)
            hosts["redis" if cut == "redis" else "one"].plug(in_=False)
            time.sleep(cut_s)
            hosts["redis" if cut == "redis" else "one"].plug(in_=True)
            assert wait_until(lambda: is_redis_up(redis), timeout_s=30)
            before, mended = ended(), time.monotonic()
            wait_until(lambda: ended() >= jobs, timeout_s=STUCK_S)
            took_s = time.monotonic() - mended
            found = [generation for i in ids if (generation := look(state, i)) is not None]
            figures: collections.Counter[str] = collections.Counter(str(g.status) for g in found)
            return {
                **figures,
                "had ended at the mending": before,
                "seconds from then to the last": round(took_s, 1),
                "workers that live": sum(p.poll() is None for p in processes[1:]),
                "lost": jobs - len(found),
                "stuck": sum(g.status not in TERMINAL for g in found),
                "ended twice": max(0, ended() - jobs),
                "not succeeded": sum(g.status is not Status.SUCCEEDED for g in found),
                "not whole": sum(not whole(state, storage, i) for i in ids),
                "left on the queue": get_queue(MANIFEST.name, redis).count,
            }
        except RedisError as error:
            raise SystemExit(f"Redis is not reached from {SUBNET}.1: {error}") from error
        finally:
            for process in reversed(processes):
                process.terminate()
            for process in reversed(processes):
                process.wait(60)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cut", choices=["worker", "redis"], default="worker")
    parser.add_argument("--jobs", type=int, default=600)
    parser.add_argument("--cut-s", type=float, default=30.0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        figures = run(Path(name), cut=arguments.cut, jobs=arguments.jobs, cut_s=arguments.cut_s)
    print(figures)
    raise SystemExit(any(list(figures.values())[list(figures).index("lost") :]))
