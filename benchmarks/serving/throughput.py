"""What does the queue cost? The same simulated accelerator: raw, under plain RQ, and under our worker, saturated.

    python -m benchmarks.serving.throughput --seconds 10
    python -m benchmarks.serving.throughput --seconds 10 --loads uniform --fsync always everysec no --repetitions 2

A step sleeps a constant time for up to 32 rows, so a full batch costs what a single row does. Each contender is its own process with
all jobs queued beforehand, is given a while to start, and is then counted for the given seconds. Prints jobs per second and the ratio to the raw ceiling.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from benchmarks.serving.accelerator import STEP_S
from benchmarks.serving.load import payload
from clipsynth.jobs.queue import connect, enqueue, get_queue
from clipsynth.jobs.store import JobStore, new_id
from clipsynth.schemas.generation import JobPayload
from clipsynth.services.embedded_redis import EmbeddedRedis
from clipsynth.settings import Settings

WARM_UP_S = 3.0


def uniform(_: random.Random) -> JobPayload:
    """8 steps, 1 s, no guidance."""
    return payload()


def mixed(draw: random.Random) -> JobPayload:
    """8 to 50 steps, 2 to 5 s, guidance on for every other job."""
    return payload(
        num_inference_steps=draw.randint(8, 50),
        duration_s=draw.choice([2.0, 3.0, 4.0, 5.0]),
        guidance_scale=draw.choice([1.0, 3.0]),
    )


LOADS: dict[str, Callable[[random.Random], JobPayload]] = {"uniform": uniform, "mixed": mixed}


def raw(load: str, rows: int, seconds: float) -> tuple[float, float]:
    """Return jobs per second, and CPU milliseconds per job, of the engine's limit of rows, always full, with no queue, thread or file: the ceiling."""
    from benchmarks.serving.simulated import BATCH, TOKENS_PER_S, Simulated
    from models.sampler import advance
    from worker.engine import weight

    draw = random.Random(0)
    model = Simulated(STEP_S)
    limit = min(rows, BATCH) * TOKENS_PER_S
    running, waiting = [], model.rows(LOADS[load](draw))
    done, cpu, end = 0, time.process_time(), time.perf_counter() + seconds
    while time.perf_counter() < end:
        while not running or weight([*running, *waiting]) <= limit:
            running += waiting
            waiting = model.rows(LOADS[load](draw))
        advance(running, model.velocity)
        done += sum(row.done for row in running)
        running = [row for row in running if not row.done]
    return done / seconds, 1e3 * (time.process_time() - cpu) / done


def plain_worker(redis_url: str, data_dir: Path, model: Any = None) -> None:
    """Be RQ's SimpleWorker on one job after the other, with the states and files of ours; `model` is a predictor, simulated by default."""
    from rq import SimpleWorker

    from benchmarks.serving.simulated import Simulated
    from clipsynth.storage import Storage
    from models.sampler import advance
    from worker.engine import SamplingRequest
    from worker.job_runner import JobRunner
    from worker.rq_adapter.job import GenerationJob

    settings = Settings(redis_url=redis_url, data_dir=data_dir)
    state = JobStore.from_settings(connect(redis_url), settings)
    model = model or Simulated(STEP_S)
    jobs = JobRunner(model, state, Storage(settings.results_url), max_attempts=3)

    def generate(generation_id: str, raw_payload: dict[str, Any]) -> None:
        wanted = JobPayload.model_validate(raw_payload)
        state.start(generation_id, batched_with_others=False)
        ticket: SamplingRequest = jobs.ticket(generation_id, wanted)
        ticket.rows = ticket.prepare()
        while not ticket.rows[0].done:
            advance(ticket.rows, model.velocity)
        for n, row in enumerate(ticket.rows):
            ticket.results[n] = ticket.deliver(n, model.decode([row], wanted.duration_s)[0])
        end = jobs.outcome(generation_id, ticket, None)
        state.change(generation_id, end.status, **end.fields)

    class PlainJob(GenerationJob):
        @property
        def func(self) -> Callable[..., None]:  # type: ignore[override]
            return generate

    queue = get_queue(model.manifest.name, connect(redis_url))
    SimpleWorker([queue], connection=queue.connection, job_class=PlainJob, serializer=queue.serializer).work(
        logging_level="ERROR"
    )


def our_worker(redis_url: str, data_dir: Path, rows: int) -> None:
    """Be our worker, with room for so many rows."""
    from benchmarks.serving import simulated

    simulated.BATCH = rows
    simulated.work(redis_url, data_dir, STEP_S)


def through_redis(
    target: Callable[..., None], arguments: Iterable[Any], load: str, seconds: float, fsync: str = "always"
) -> tuple[float, float]:
    """Return jobs per second that a worker process finishes, and its CPU milliseconds per job; `fsync` is Redis's appendfsync."""
    with tempfile.TemporaryDirectory(prefix="throughput-") as folder:
        server = EmbeddedRedis(Path(folder))
        settings = Settings(redis_url=server.url, data_dir=Path(folder))
        redis = connect(server.url)
        state = JobStore.from_settings(redis, settings)
        draw = random.Random(0)
        process = multiprocessing.get_context("spawn").Process(
            target=target, args=(server.url, Path(folder), *arguments), daemon=True
        )
        try:
            redis.config_set("appendfsync", "no")
            for _ in range(round(250 * (seconds + WARM_UP_S))):
                enqueue(redis, state, new_id(), LOADS[load](draw), settings)
            redis.config_set("appendfsync", fsync)
            process.start()
            while not state.ended():
                time.sleep(0.05)
            time.sleep(WARM_UP_S)
            before, cpu, started = sum(state.ended().values()), cpu_s(process.pid), time.perf_counter()
            time.sleep(seconds)
            after, cpu_after = sum(state.ended().values()), cpu_s(process.pid)
            elapsed = time.perf_counter() - started
            return (after - before) / elapsed, 1e3 * (cpu_after - cpu) / max(1, after - before)
        finally:
            process.kill()
            process.join()
            redis.close()
            server.stop()


def cpu_s(pid: int | None) -> float:
    """Return the CPU seconds that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--rows", type=int, nargs="*", default=[8, 32])
    parser.add_argument("--loads", nargs="*", default=list(LOADS), choices=LOADS)
    parser.add_argument(
        "--fsync", nargs="*", default=["always"], choices=("always", "everysec", "no"), help="of Redis"
    )
    parser.add_argument("--repetitions", type=int, default=1)
    options = parser.parse_args()
    for load, _ in itertools.product(options.loads, range(options.repetitions)):
        plain, plain_cpu = through_redis(plain_worker, (), load, options.seconds)
        print(f"{load}: plain RQ {plain:.1f} jobs/s, {plain_cpu:.1f} ms of CPU per job", flush=True)
        for rows in options.rows:
            ceiling, model_cpu = raw(load, rows, options.seconds)
            print(f"{load}, {rows} rows: raw {ceiling:.1f} jobs/s, {model_cpu:.2f} ms of CPU per job")
            for fsync in options.fsync:
                ours, cpu = through_redis(our_worker, (rows,), load, options.seconds, fsync)
                print(
                    f"  ours, {fsync}: {ours:.1f} jobs/s = {ours / ceiling:.3f} of raw, {ours / plain:.1f} times"
                    f" plain RQ, {cpu:.2f} ms of CPU per job, {cpu - model_cpu:.2f} beyond the model",
                    flush=True,
                )


if __name__ == "__main__":
    main()
