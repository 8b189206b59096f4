"""Run jobs while workers are killed with -9 and Redis (AOF, fsync always) is killed and restarted.

    python -m benchmarks.chaos                                        # 1,000 jobs, 100 kills, 10 restarts
    python -m benchmarks.chaos --jobs 60 --kills 5 --restarts 1       # seconds
    python -m benchmarks.chaos --kills 0 --restarts 0 --rolls 50      # SIGTERM instead: rolling restarts

The model is simulated, so that a restart is quick. A fifth of the jobs is canceled at random times. Ends with
code 1 unless every canceled job is canceled, every other one succeeded, and none is stuck or ended twice.
"""

from __future__ import annotations

import logging
import multiprocessing
import random
import tempfile
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import typer
from redis.exceptions import RedisError

from benchmarks.chaos.verdict import find, verdict
from benchmarks.load import simulated
from benchmarks.load.workload import MODEL, POISON, payload
from clipsynth.errors import AlreadyEnded
from clipsynth.jobs.queue import connect, withdraw
from clipsynth.jobs.store import JobStore, new_id
from clipsynth.schemas.generation import Status
from clipsynth.services.embedded_redis import EmbeddedRedis
from clipsynth.settings import Settings
from clipsynth.storage import Storage

WORKERS = 2
STEP_S = 0.005
# Mean time between two faults.
FAULT_S = 0.6
OUTAGE_S = 0.3
STUCK_S = 60.0


class Chaos:
    """One run in a folder of its own."""

    def __init__(self, folder: Path, *, seed: int, max_attempts: int) -> None:
        self.draw = random.Random(seed)
        self.redis_server = EmbeddedRedis(folder)
        fast = {"lease_s": 2, "heartbeat_s": 0.5, "max_attempts": max_attempts}
        self.settings = Settings(redis_url=self.redis_server.url, data_dir=folder, **fast)
        self.redis = connect(self.redis_server.url)
        self.state = JobStore.from_settings(self.redis, self.settings)
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["benchmarks.load.simulated", "worker.rq_adapter.worker"])
        self.workers = [self.new_worker() for _ in range(WORKERS)]
        self.jobs: dict[str, str] = {}
        self.canceled: set[str] = set()
        self.losses = 0

    def new_worker(self) -> ForkServerProcess:
        process = self.context.Process(target=simulated.work, args=(self.settings, STEP_S), daemon=True)
        process.start()
        return process

    def replace_ended_workers(self) -> None:
        for n, worker in enumerate(self.workers):
            if not worker.is_alive():
                self.losses += 1
                worker.close()
                self.workers[n] = self.new_worker()

    def retry(self, act: Callable[[], None]) -> None:
        """Act until Redis answers, as a client does that gets no answer."""
        while True:
            try:
                return act()
            except RedisError:
                time.sleep(0.05)

    def submit(self, prompt: str = "rain") -> None:
        generation_id = new_id()
        sizes = {"num_inference_steps": self.draw.randint(4, 40), "num_outputs": self.draw.randint(1, 3)}
        wanted = payload(prompt=prompt, guidance_scale=self.draw.choice([1.0, 3.0]), **sizes)

        def act() -> None:
            # a job may have been accepted though the answer was lost
            if find(self.state, generation_id) is None:
                self.state.submit(generation_id, wanted)

        self.retry(act)
        self.jobs[generation_id] = prompt

    def cancel(self) -> None:
        left = [i for i, prompt in self.jobs.items() if prompt != POISON and i not in self.canceled]
        if not left:
            return
        generation_id = self.draw.choice(left[-3:])

        def act() -> None:
            try:
                status = self.state.cancel(generation_id)
            except AlreadyEnded:
                status = self.state.get(generation_id).status
                if status is not Status.CANCELED:
                    return
            if status is Status.CANCELED:
                withdraw(self.redis, generation_id, MODEL)
            self.canceled.add(generation_id)

        self.retry(act)

    def kill_worker(self) -> None:
        self.replace_ended_workers()
        worker = self.draw.choice(self.workers)
        worker.kill()
        worker.join()

    def roll_worker(self) -> None:
        """Restart a worker as an update does: SIGTERM, and a new one once it has ended."""
        self.replace_ended_workers()
        self.draw.choice(self.workers).terminate()

    def restart_redis(self) -> None:
        self.redis_server.process.kill()
        self.redis_server.process.wait()
        time.sleep(OUTAGE_S)
        self.redis_server.start()

    def run(self, *, jobs: int, kills: int, restarts: int, poison: int, rolls: int) -> None:
        """Do everything at random times, then wait for the end of every job."""
        span = max(2.0, FAULT_S * (kills + restarts + rolls))
        acts: list[Callable[[], None]] = [self.submit] * jobs + [lambda: self.submit(POISON)] * poison
        acts += [self.kill_worker] * kills + [self.roll_worker] * rolls + [self.restart_redis] * restarts
        plan = [(self.draw.uniform(0.0, span), act) for act in acts]
        plan += [(self.draw.uniform(0.1 * span, span), self.cancel) for _ in range(jobs // 5)]
        started = time.monotonic()
        for at, act in sorted(plan, key=lambda entry: entry[0]):
            while time.monotonic() - started < at:
                self.replace_ended_workers()
                time.sleep(0.01)
            act()
        deadline = time.monotonic() + STUCK_S
        while time.monotonic() < deadline and sum(self.state.ended().values()) < len(self.jobs):
            self.replace_ended_workers()
            time.sleep(0.1)

    def verdict(self) -> dict[str, int]:
        """Count what became of the jobs."""
        expected = {i: Status.FAILED if p == POISON else Status.SUCCEEDED for i, p in self.jobs.items()}
        expected |= dict.fromkeys(self.canceled, Status.CANCELED)
        found = verdict(self.redis, self.state, Storage(self.settings.results_url), expected)
        return {"workers ended": self.losses} | found

    def close(self) -> None:
        """End the workers as a rolling restart does, and Redis."""
        for worker in self.workers:
            worker.terminate()
        for worker in self.workers:
            worker.join(30)
        self.redis.close()
        self.redis_server.stop()


def main(
    jobs: int = 1000, kills: int = 100, restarts: int = 10, rolls: int = 0, poison: int = 0, seed: int = 0,
    max_attempts: int = 20,
) -> None:  # fmt: skip
    """Run jobs while workers and Redis are killed; exit with code 1 on any fault.

    `--kills` counts kill -9 of a worker, `--restarts` kills of Redis, `--rolls` SIGTERM to a worker,
    `--poison` jobs that kill their worker. `--max-attempts` is high: a random kill is no job's fault.
    """
    logging.disable(logging.WARNING)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        chaos = Chaos(Path(folder), seed=seed, max_attempts=max_attempts)
        try:
            chaos.run(jobs=jobs, kills=kills, restarts=restarts, poison=poison, rolls=rolls)
            figures = chaos.verdict()
        finally:
            chaos.close()
    for name, figure in figures.items():
        print(f"{figure:6d} {name}")
    print(f"{time.monotonic() - started:6.1f} seconds")
    raise SystemExit(figures["faults"] > 0)


if __name__ == "__main__":
    typer.run(main)
