"""The scenario redis: many simulated workers, no model, on one real Redis.

A worker here is a thread that does to Redis what worker/rq_adapter/worker.py does for a job, through the
same code, and nothing else. It stands for a worker on another machine.
"""

from __future__ import annotations

import random
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from timeit import timeit

import numpy as np
from redis import Redis
from rq import Queue
from rq.executions import Execution
from rq.job import Job

from benchmarks.load.service import ServiceProcesses
from benchmarks.load.workload import MODEL, payload
from clipsynth.jobs.queue import connect, get_queue
from clipsynth.jobs.store import End, JobStore, new_id
from clipsynth.schemas.generation import Output, Progress, Status
from clipsynth.services.processes import wait_until
from clipsynth.settings import Settings
from worker.rq_adapter.claim import JobClaimer

PROCESSES = 4
LEASE_S = 15
# Seconds between two looks for cancels, and between two reports of progress, as in the worker.
WATCH_S, PROGRESS_S = 0.05, 0.25
# One POST's writes after this many reads.
POST_EVERY = 4
COLUMNS = {
    "workers": "d", "jobs/s": ".1f", "of ideal": ".2f", "read p50, ms": ".2f", "p95": ".2f",
    "POST's writes p50, ms": ".1f", "p95 ": ".1f", "cores: workers": ".2f", "Redis": ".2f",
    "Redis, ms a job": ".2f",
}  # fmt: skip


def simulate(redis: Redis, pool: ThreadPoolExecutor, batch: int, job_s: float) -> None:
    """Do what a worker and its clients (in `pool`) do to Redis, for batches of jobs that take `job_s`."""
    state = JobStore(redis, result_ttl_s=3600)
    queue = get_queue(MODEL, redis)
    claimer = JobClaimer(queue, Job)
    name = f"simulated-{new_id()}"
    # the workers must not run in step
    time.sleep(random.uniform(0, job_s))
    while True:
        list(pool.map(lambda _: state.submit(new_id(), payload()), range(batch)))
        jobs = [job for job, _ in claimer.claim(batch)]
        ids = [job.id for job in jobs]
        executions = begin(redis, state, queue, jobs, name)
        ends, reported = time.monotonic() + job_s, time.monotonic()
        while (left := ends - time.monotonic()) > 0:
            time.sleep(min(WATCH_S, left))
            state.unwanted(ids)
            if time.monotonic() - reported > PROGRESS_S:
                reported = time.monotonic()
                state.set_progress({i: Progress(step=2, num_steps=8) for i in ids})
        finish(redis, state, jobs, executions, name)


def begin(redis: Redis, state: JobStore, queue: Queue, jobs: list[Job], name: str) -> list[Execution]:
    """Lease jobs, as BatchWorker._start does."""
    executions = []
    with state.pipeline(redis) as pipeline:
        for job in jobs:
            job.origin = queue.name
            executions.append(Execution.create(job, LEASE_S, pipeline, worker_name=name))
            job.prepare_for_execution(name, pipeline)
            pipeline.persist(job.key)
            pipeline.lrem(queue.intermediate_queue_key, 1, job.id)
            state.queue_start(pipeline, job.id, batched_with_others=True)
        pipeline.execute()
    return executions


def finish(redis: Redis, state: JobStore, jobs: list[Job], executions: list[Execution], name: str) -> None:
    """Record the end of jobs, as Finalizer and record_end do: one transaction for all."""
    with state.pipeline(redis) as pipeline:
        for job, execution in zip(jobs, executions, strict=True):
            output = Output(
                index=0, url=f"/v1/generations/{job.id}/audio/0", media_type="audio/wav", format="wav",
                filename="x.wav", duration_s=1.0, sample_rate=16000, seed=0, recipe="x" * 300,
            )  # fmt: skip
            state.queue_end(pipeline, End(job.id, Status.SUCCEEDED, {"outputs": [output.model_dump()]}))
            pipeline.hincrby(f"rq:worker:{name}", "successful_job_count", 1)
            pipeline.hincrbyfloat(f"rq:worker:{name}", "total_working_time", 1.0)
            pipeline.delete(job.key)
            execution.delete(job=job, pipeline=pipeline)
        pipeline.execute()


def measure(workers: int, seconds: float, batch: int, job_s: float, fsync: str) -> list[float]:
    with ServiceProcesses() as service:
        service.redis.config_set("appendfsync", fsync)
        names = [f"workers {n}" for n in range(min(PROCESSES, workers))]
        for n, name in enumerate(names):
            share = workers // PROCESSES + (n < workers % PROCESSES)
            service.start(name, "-m", "benchmarks.load.redis_rate", *map(str, (share, batch, job_s)))
        warm = wait_until(lambda: service.ended() >= workers * batch, timeout_s=60)
        assert warm, f"the simulated workers do not end their first jobs: {service.log.read_text()}"

        def counts() -> np.ndarray:
            cpu_s = sum(map(service.cpu_s, names)), service.cpu_s("redis")
            return np.array([service.ended(), *cpu_s, time.monotonic()])

        def post(generation_id: str) -> None:
            service.state.submit(generation_id, payload())

        reads, posts, mine = [], [], new_id()
        post(mine)
        before, started = counts(), time.monotonic()
        while time.monotonic() - started < seconds:
            reads.append(timeit(lambda: service.state.get(mine), number=1))
            if len(reads) % POST_EVERY == 0:
                posts.append(timeit(lambda: post(new_id()), number=1))
            time.sleep(0.02)
        *spent, took_s = counts() - before
        rate, workers_cpu, redis_cpu = (value / took_s for value in spent)
    latencies = (1e3 * q for waits in (reads, posts) for q in np.quantile(waits, [0.5, 0.95]))
    ideal = workers * batch / job_s
    return [workers, rate, rate / ideal, *latencies, workers_cpu, redis_cpu, 1e3 * redis_cpu / rate]


def measure_redis(
    workers: list[int] = (1, 2, 4, 8, 16, 32, 64), seconds: float = 8.0, batch: int = 16, job_s: float = 2.0,
    fsync: str = "always",
) -> None:  # fmt: skip
    """Measure what one Redis carries: jobs per second of many simulated workers, and its latency.

    A worker's jobs take `--job-s` seconds, `--batch` at a time; the queue is kept full. Latency is that of
    one more client: a read of a generation, and the writes of a POST.
    """
    print(f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|")
    for count in workers:
        row = measure(count, seconds, batch, job_s, fsync)
        cells = [format(value, form) for value, form in zip(row, COLUMNS.values(), strict=True)]
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    count, batch, job_s = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    url = Settings().redis_url
    with ThreadPoolExecutor(8 * count) as clients, ThreadPoolExecutor(count) as threads:
        started = [threads.submit(simulate, connect(url), clients, batch, job_s) for _ in range(count)]
        for worker in started:
            worker.result()
