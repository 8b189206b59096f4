"""What one Redis carries: many simulated workers, no model at all, against one real Redis that writes each command to disk.

    python -m benchmarks.scale.redis --workers 1 2 4 8 16 32 64 --seconds 8

A worker here is a thread of a few processes that does to Redis what worker/rq_worker.py does for a job, through the same code (claim, lease, progress,
final state), and nothing else: it stands for a worker on a machine of its own whose jobs take `--job-s` seconds, `--batch` at a time. The queue is
kept full, so the rate is limited by the workers until Redis bends it. Latency is that of a client's read of a generation meanwhile.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

from redis import Redis
from rq import Queue
from rq.executions import Execution
from rq.job import Job

from benchmarks.serving.load import MANIFEST, payload
from clipsynth.embedded_redis import EmbeddedRedis
from clipsynth.queue import connect, enqueue, get_queue
from clipsynth.schemas import ModelInfo, Output, Progress
from clipsynth.settings import Settings
from clipsynth.state import State, new_id

PROCESSES = 4
LEASE_S = 15


def simulate(redis: Redis, stop: Event, pool: ThreadPoolExecutor, *, batch: int, job_s: float) -> None:
    """Be a worker and its clients: batches of jobs that take `job_s`, with the traffic of real ones."""
    settings = Settings(redis_url="redis://unused")
    state = State(redis, result_ttl_s=3600)
    queue = get_queue(MANIFEST.name, redis)
    name = f"simulated-{new_id()}"
    while not stop.is_set():
        list(pool.map(lambda _: enqueue(redis, state, new_id(), payload(), settings), range(batch)))
        with redis.pipeline(transaction=False) as pipeline:
            for _ in range(batch):
                pipeline.lmove(queue.key, queue.intermediate_queue_key, "LEFT", "RIGHT")
            ids = [i.decode() for i in pipeline.execute() if i]
            for generation_id in ids:
                pipeline.hgetall(Job.key_for(generation_id))
            records = pipeline.execute()
        jobs = []
        for generation_id, record in zip(ids, records, strict=True):
            job = Job(generation_id, connection=redis, serializer=queue.serializer)
            job.restore(record)
            jobs.append(job)
        state.standings(ids)
        executions = []
        with redis.pipeline() as pipeline:
            for job in jobs:
                job.origin = queue.name
                executions.append(Execution.create(job, LEASE_S, pipeline, worker_name=name))
                job.prepare_for_execution(name, pipeline)
                pipeline.lrem(queue.intermediate_queue_key, 1, job.id)
                state.start(job.id, company=True, pipeline=pipeline)
            pipeline.execute()
        for _ in range(
            4
        ):  # quarters of a job: the worker looks whether it is still wanted, and tells how far it is
            if stop.wait(job_s / 4):
                break
            state.standings(ids)
            state.set_progress({i: Progress(step=2, num_steps=8) for i in ids})
        list(pool.map(partial(settle, redis, state, queue), jobs, executions))


def settle(redis: Redis, state: State, queue: Queue, job: Job, execution: Execution) -> None:
    """Write what the end of a job writes."""
    output = Output(
        index=0, url=f"/v1/generations/{job.id}/audio/0", media_type="audio/wav", format="wav",
        filename="x.wav", duration_s=1.0, sample_rate=16000, seed=0, recipe="x" * 300,
    )  # fmt: skip
    state.succeed(job.id, [output])
    with redis.pipeline() as pipeline:
        execution.delete(job=job, pipeline=pipeline)
        pipeline.zrem(f"rq:wip:{queue.name}", f"{job.id}:{execution.id}")
        pipeline.delete(job.key)
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


def measure(folder: Path, workers: int, *, seconds: float, batch: int, job_s: float) -> dict[str, float]:
    """Return jobs per second, the share of what the workers could do, and the latency of a read in ms."""
    server = EmbeddedRedis(folder)
    redis = connect(server.url)
    state = State(redis, result_ttl_s=3600)
    state.announce(
        ModelInfo(**{k: getattr(MANIFEST, k) for k in ModelInfo.model_fields.keys() - {"attributes", "cost"}})
    )
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    options = {"batch": batch, "job_s": job_s}
    shares = [workers // PROCESSES + (n < workers % PROCESSES) for n in range(PROCESSES)]
    processes = [context.Process(target=process, args=(server.url, stop, n, options)) for n in shares if n]
    for p in processes:
        p.start()
    try:
        while sum(state.ended().values()) < workers * batch:
            time.sleep(0.05)
        cpu, ended, started = redis.info("cpu"), sum(state.ended().values()), time.monotonic()
        reads = []
        while time.monotonic() - started < seconds:
            begun = time.monotonic()
            redis.hgetall("clipsynth:gen:none")
            reads.append(1e3 * (time.monotonic() - begun))
            time.sleep(0.02)
        took_s = time.monotonic() - started
        rate = (sum(state.ended().values()) - ended) / took_s
        used = redis.info("cpu")
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
    arguments = parser.parse_args()
    print(
        "| workers | jobs/s | of what they could | read p50, ms | p95 | Redis' CPU |\n|---|---|---|---|---|---|"
    )
    for count in arguments.workers:
        with tempfile.TemporaryDirectory() as name:
            row = measure(
                Path(name), count, seconds=arguments.seconds, batch=arguments.batch, job_s=arguments.job_s
            )
        print(
            f"| {count} | {row['jobs_per_s']:.1f} | {row['of_ideal']:.2f} | {row['read_p50_ms']:.2f} |"
            f" {row['read_p95_ms']:.2f} | {row['redis_cpu']:.2f} | {row['redis_ms']:.2f} |",
            flush=True,
        )
