"""What one Redis carries: many simulated workers, no model at all, against one real Redis that writes each command to disk.

    python -m benchmarks.scale.redis --workers 1 2 4 8 16 32 64 --seconds 8

A worker here is a thread of a few processes that does to Redis what worker/rq_adapter/worker.py does for a job, through the same code (claim, lease, look for cancels,
progress, final state), and nothing else: it stands for a worker on a machine of its own whose jobs take `--job-s` seconds, `--batch` at a time. The queue is
kept full, so the rate is limited by the workers until Redis bends it. Latency is what one more client meets meanwhile: that of a read of a generation, and
that of putting one on the queue, which is what a POST waits for.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.context import SpawnProcess
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import psutil
from redis import Redis
from rq import Queue
from rq.executions import Execution
from rq.job import Job

from benchmarks.serving.load import MANIFEST, payload
from clipsynth.jobs.queue import connect, enqueue, get_queue
from clipsynth.jobs.store import End, JobStore, new_id
from clipsynth.schemas.generation import Output, Progress, Status
from clipsynth.services.embedded_redis import EmbeddedRedis
from clipsynth.services.processes import wait_until
from clipsynth.settings import Settings
from worker.rq_adapter.claim import JobClaimer

PROCESSES = 4
LEASE_S = 15
WARM_S = 60
POST_EVERY = 4  # reads
LATENCIES = ("read p50, ms", "read p95", "POST's writes p50, ms", "p95")


def simulate(
    redis: Redis,
    stop: Event,
    pool: ThreadPoolExecutor,
    *,
    batch: int,
    job_s: float,
    watch_s: float,
    progress_s: float,
) -> None:
    """Be a worker and its clients: batches of jobs that take `job_s`, with the traffic of real ones: a look at cancels every `watch_s`, progress every `progress_s`."""
    settings = Settings(redis_url="redis://unused")
    state = JobStore(redis, result_ttl_s=3600)
    queue = get_queue(MANIFEST.name, redis)
    taking = JobClaimer(queue, Job)
    name = f"simulated-{new_id()}"
    stop.wait(random.uniform(0, job_s))  # not all at once
    while not stop.is_set():
        list(pool.map(lambda _: enqueue(redis, state, new_id(), payload(), settings), range(batch)))
        jobs = [job for job, _ in taking.take(batch)]
        ids = [job.id for job in jobs]
        executions = begin(redis, state, queue, jobs, name)
        ends, told = time.monotonic() + job_s, time.monotonic()
        while not stop.wait(min(watch_s, max(0.0, ends - time.monotonic()))) and time.monotonic() < ends:
            state.unwanted(ids)
            if time.monotonic() - told > progress_s:
                told = time.monotonic()
                state.set_progress({i: Progress(step=2, num_steps=8) for i in ids})
        settle(redis, state, jobs, executions, name)


def begin(redis: Redis, state: JobStore, queue: Queue, jobs: list[Job], name: str) -> list[Execution]:
    """Lease jobs, as BatchWorker._begin does."""
    executions = []
    with redis.pipeline() as pipeline:
        for job in jobs:
            job.origin = queue.name
            executions.append(Execution.create(job, LEASE_S, pipeline, worker_name=name))
            job.prepare_for_execution(name, pipeline)
            pipeline.persist(job.key)
            pipeline.lrem(queue.intermediate_queue_key, 1, job.id)
            state.start(job.id, batched_with_others=True, pipeline=pipeline)
        pipeline.execute()
    return executions


def settle(redis: Redis, state: JobStore, jobs: list[Job], executions: list[Execution], name: str) -> None:
    """Write what the end of jobs writes, as Finalizer and BatchWorker._record do: one transaction for all."""
    with redis.pipeline() as pipeline:
        for job in jobs:
            output = Output(
                index=0, url=f"/v1/generations/{job.id}/audio/0", media_type="audio/wav", format="wav",
                filename="x.wav", duration_s=1.0, sample_rate=16000, seed=0, recipe="x" * 300,
            )  # fmt: skip
            state.end(End(job.id, Status.SUCCEEDED, {"outputs": [output.model_dump()]}), pipeline)
        for job, execution in zip(jobs, executions, strict=True):
            pipeline.hincrby(f"rq:worker:{name}", "successful_job_count", 1)
            pipeline.hincrbyfloat(f"rq:worker:{name}", "total_working_time", 1.0)
            pipeline.delete(job.key)
            execution.delete(job=job, pipeline=pipeline)
        pipeline.execute()


def process(url: str, stop: Event, workers: int, options: dict[str, Any]) -> None:
    """Run some of the workers, each with a connection of its own."""
    pool = ThreadPoolExecutor(8 * workers)
    threads = [
        threading.Thread(target=simulate, args=(connect(url), stop, pool), kwargs=options)
        for _ in range(workers)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def workers_cpu_s(processes: list[SpawnProcess]) -> float:
    """Return the CPU seconds that they have taken until now."""
    return sum(sum(psutil.Process(p.pid).cpu_times()[:2]) for p in processes)


def milliseconds(action: Callable[[], object]) -> float:
    """Return how long it takes."""
    begun = time.monotonic()
    action()
    return 1e3 * (time.monotonic() - begun)


def measure(
    folder: Path, workers: int, *, seconds: float, batch: int, job_s: float, fsync: str
) -> dict[str, float]:
    """Return jobs per second, the share of what the workers could do, and the latency of a read and of a POST's writes in ms, cores."""
    # here, for they load torch, which the workers' processes do without
    from worker.main import model_info
    from worker.rq_adapter.worker import PROGRESS_S, WATCH_S

    server = EmbeddedRedis(folder)
    redis = connect(server.url)
    redis.config_set("appendfsync", fsync)
    state = JobStore(redis, result_ttl_s=3600)
    state.announce(model_info(MANIFEST))
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    options = {"batch": batch, "job_s": job_s, "watch_s": WATCH_S, "progress_s": PROGRESS_S}
    shares = [workers // PROCESSES + (n < workers % PROCESSES) for n in range(PROCESSES)]
    processes = [context.Process(target=process, args=(server.url, stop, n, options)) for n in shares if n]
    for p in processes:
        p.start()
    try:
        warm = wait_until(lambda: sum(state.ended().values()) >= workers * batch, timeout_s=WARM_S)
        assert warm, "the simulated workers do not end their first jobs"
        cpu_s = workers_cpu_s(processes)
        cpu, ended, started = redis.info("cpu"), sum(state.ended().values()), time.monotonic()
        reads, posts, mine = [], [], new_id()
        settings = Settings(redis_url="redis://unused")
        enqueue(redis, state, mine, payload(), settings)
        while time.monotonic() - started < seconds:
            reads.append(milliseconds(lambda: state.get(mine)))
            if len(reads) % POST_EVERY == 0:
                posts.append(milliseconds(lambda: enqueue(redis, state, new_id(), payload(), settings)))
            time.sleep(0.02)
        took_s = time.monotonic() - started
        rate = (sum(state.ended().values()) - ended) / took_s
        used = redis.info("cpu")
        cpu_s = workers_cpu_s(processes) - cpu_s
        busy = sum(used[k] - cpu[k] for k in ("used_cpu_sys", "used_cpu_user")) / took_s
    finally:
        stop.set()
        for p in processes:
            p.join()
        redis.close()
        server.stop()
    return {
        "workers": workers,
        "jobs_per_s": rate,
        "of_ideal": rate / (workers * batch / job_s),
        "read_p50_ms": statistics.median(reads),
        "read_p95_ms": statistics.quantiles(reads, n=20)[-1],
        "post_p50_ms": statistics.median(posts),
        "post_p95_ms": statistics.quantiles(posts, n=20)[-1],
        "workers_cpu": cpu_s / took_s,
        "redis_cpu": busy,
        "redis_ms": 1e3 * busy / rate,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--job-s", type=float, default=2.0)
    parser.add_argument("--fsync", choices=["always", "everysec", "no"], default="always")
    arguments = parser.parse_args()
    print(
        f"| workers | jobs/s | of what they could | {' | '.join(LATENCIES)} | cores: workers | Redis | of it per job, ms |"
    )
    print("|---" * 10 + "|")
    fixed = {name: value for name, value in vars(arguments).items() if name != "workers"}
    for count in arguments.workers:
        with tempfile.TemporaryDirectory() as name:
            row = measure(Path(name), count, **fixed)
        print(
            f"| {count} | {row['jobs_per_s']:.1f} | {row['of_ideal']:.2f} | {row['read_p50_ms']:.2f} | {row['read_p95_ms']:.2f} |"
            f" {row['post_p50_ms']:.1f} | {row['post_p95_ms']:.1f} | {row['workers_cpu']:.2f} | {row['redis_cpu']:.2f} | {row['redis_ms']:.2f} |",
            flush=True,
        )
