"""Is anything lost? Jobs on a real Redis (AOF, fsync always) while workers are killed with -9 and Redis is killed and restarted.

    python -m benchmarks.serving.chaos                                        # 1,000 jobs, 100 kills, 10 restarts of Redis
    python -m benchmarks.serving.chaos --jobs 60 --kills 5 --restarts 1       # seconds
    python -m benchmarks.serving.chaos --kills 0 --restarts 0 --rolls 50      # SIGTERM instead: rolling restarts of two workers

The model is simulated, so that a restart is quick; the worker, its process, Redis and the files are real. A fifth of the jobs is canceled at
random times. Ends with code 1 unless every job that was not canceled succeeded, every canceled one is canceled, none is stuck and none ended twice.
"""

from __future__ import annotations

import argparse
import collections
import logging
import multiprocessing
import random
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from redis.exceptions import RedisError

from benchmarks.serving.load import MANIFEST, POISON, look, payload
from clipsynth.errors import AlreadyEnded, NotFound
from clipsynth.jobs.queue import connect, enqueue, get_queue, withdraw
from clipsynth.jobs.store import JobStore, new_id
from clipsynth.schemas.generation import TERMINAL, Status
from clipsynth.services.embedded_redis import EmbeddedRedis
from clipsynth.settings import Settings
from clipsynth.storage import Storage, audio_key

WORKERS = 2
STEP_S = 0.005
FAULT_S = 0.6  # mean time between two faults
OUTAGE_S = 0.3  # of Redis
STUCK_S = 60.0


def work(*arguments: Any, **settings: Any) -> None:
    """Be a worker process: this one loads torch."""
    from benchmarks.serving import simulated

    simulated.work(*arguments, **settings)


class Chaos:
    """One run in a folder of its own."""

    def __init__(self, folder: Path, *, seed: int, max_attempts: int) -> None:
        self.draw = random.Random(seed)
        self.redis_server = EmbeddedRedis(folder)
        self.settings = Settings(redis_url=self.redis_server.url, data_dir=folder)
        self.redis = connect(self.redis_server.url)
        self.state = JobStore.from_settings(self.redis, self.settings)
        self.storage = Storage(self.settings.results_url)
        self.worker_settings = {"lease_s": 2, "heartbeat_s": 0.5, "max_attempts": max_attempts}
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["benchmarks.serving.simulated", "worker.rq_adapter.worker"])
        self.workers = [self.new_worker() for _ in range(WORKERS)]
        self.jobs: dict[str, str] = {}  # id: prompt
        self.canceled: set[str] = set()
        self.losses = 0

    def new_worker(self) -> ForkServerProcess:
        process = self.context.Process(
            target=work,
            args=(self.redis_server.url, self.settings.data_dir, STEP_S),
            kwargs=self.worker_settings,
            daemon=True,
        )
        process.start()
        return process

    def look_after(self) -> None:
        """Start a worker in the place of each that has ended."""
        for n, worker in enumerate(self.workers):
            if not worker.is_alive():
                self.losses += 1
                worker.close()
                self.workers[n] = self.new_worker()

    def insist(self, act: Callable[[], None]) -> None:
        """Do what a client does that gets no answer: ask again."""
        while True:
            try:
                return act()
            except RedisError:
                time.sleep(0.05)

    def submit(self, prompt: str = "rain") -> None:
        generation_id = new_id()
        wanted = payload(
            prompt=prompt,
            num_inference_steps=self.draw.randint(4, 40),
            num_outputs=self.draw.randint(1, 3),
            guidance_scale=self.draw.choice([1.0, 3.0]),
        )

        def act() -> None:
            try:
                self.state.get(generation_id)  # accepted, though the answer was lost
            except NotFound:
                enqueue(self.redis, self.state, generation_id, wanted, self.settings)

        self.insist(act)
        self.jobs[generation_id] = prompt

    def cancel(self) -> None:
        left = [i for i, prompt in self.jobs.items() if prompt != POISON and i not in self.canceled]
        generation_id = self.draw.choice(left[-3:])

        def act() -> None:
            try:
                status = self.state.cancel(generation_id)
            except AlreadyEnded:
                status = self.state.get(generation_id).status
                if status is not Status.CANCELED:
                    return
            if status is Status.CANCELED:
                withdraw(self.redis, generation_id, MANIFEST.name)
            self.canceled.add(generation_id)

        self.insist(act)

    def kill_worker(self) -> None:
        self.look_after()
        worker = self.draw.choice(self.workers)
        worker.kill()
        worker.join()  # so that the next kill meets one that lives

    def roll_worker(self) -> None:
        """Restart a worker as an update does: SIGTERM, and a new one once it has ended."""
        self.look_after()
        self.draw.choice(self.workers).terminate()

    def restart_redis(self) -> None:
        self.redis_server.process.kill()
        self.redis_server.process.wait()
        time.sleep(OUTAGE_S)
        self.redis_server.start()

    def run(self, *, jobs: int, kills: int, restarts: int, poison: int, rolls: int) -> None:
        """Do everything at random times, then wait for the end of every job."""
        span = max(2.0, FAULT_S * (kills + restarts + rolls))
        acts: list[tuple[float, Callable[[], None]]] = []
        for act, times in (
            (self.submit, jobs),
            (lambda: self.submit(POISON), poison),
            (self.kill_worker, kills),
            (self.roll_worker, rolls),
            (self.restart_redis, restarts),
        ):
            acts += [(self.draw.uniform(0.0, span), act) for _ in range(times)]
        acts += [(self.draw.uniform(0.1 * span, span), self.cancel) for _ in range(jobs // 5)]
        acts.sort(key=lambda entry: entry[0])
        started = time.monotonic()
        for at, act in acts:
            while time.monotonic() - started < at:
                self.look_after()
                time.sleep(0.01)
            if act != self.cancel or self.jobs:
                act()
        deadline = time.monotonic() + STUCK_S
        while time.monotonic() < deadline and self.unfinished():
            self.look_after()
            time.sleep(0.1)

    def unfinished(self) -> int:
        return len(self.jobs) - sum(self.state.ended().values())

    def verdict(self) -> dict[str, int]:
        """Return the figures; all from "lost" on must be 0."""
        statuses = {}
        for generation_id in self.jobs:
            if (generation := look(self.state, generation_id)) is not None:
                statuses[generation_id] = generation
        figures: collections.Counter[str] = collections.Counter(g.status for g in statuses.values())
        expected = {
            i: Status.CANCELED
            if i in self.canceled
            else Status.FAILED
            if prompt == POISON
            else Status.SUCCEEDED
            for i, prompt in self.jobs.items()
        }
        for generation_id, generation in statuses.items():
            if generation.status != expected[generation_id]:
                print(f"{generation_id}: {generation.status}, error {generation.error}")
        figures["workers ended"] = self.losses
        figures["lost"] = len(self.jobs) - len(statuses)
        figures["stuck"] = sum(g.status not in TERMINAL for g in statuses.values())
        figures["ended twice"] = max(0, -self.unfinished())
        figures["ended otherwise than expected"] = sum(g.status != expected[i] for i, g in statuses.items())
        figures["results that are not whole"] = sum(not self.whole(i, expected[i]) for i in statuses)
        queue = get_queue(MANIFEST.name, self.redis)
        figures["left on the queue"] = queue.count
        figures["ended and still noted as unfinished"] = len(self.state.unfinished()) - figures["stuck"]
        return dict(figures)

    def whole(self, generation_id: str, expected: Status) -> bool:
        """Return whether exactly the outputs asked for are listed and stored; none of one that did not succeed."""
        generation = self.state.get(generation_id)
        wanted = generation.input.num_outputs if expected is Status.SUCCEEDED else 0
        if [o.index for o in generation.outputs] != list(range(wanted)):
            return False
        try:
            for n in range(wanted):
                self.storage.get(audio_key(generation_id, n, "wav"))
        except NotFound:
            return False
        return True

    def close(self) -> None:
        """End the workers as a rolling restart does, and Redis."""
        for worker in self.workers:
            worker.terminate()
        for worker in self.workers:
            worker.join(30)
        self.redis.close()
        self.redis_server.stop()


def main(arguments: list[str] | None = None) -> int:
    """Run; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    defaults = {"jobs": 1000, "kills": 100, "restarts": 10, "rolls": 0, "poison": 0, "seed": 0}
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument(
        "--max-attempts", type=int, default=20, help="high by default: a kill at random is no job's fault"
    )
    options = parser.parse_args(arguments)
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        chaos = Chaos(Path(folder), seed=options.seed, max_attempts=options.max_attempts)
        started = time.monotonic()
        try:
            chaos.run(
                jobs=options.jobs,
                kills=options.kills,
                restarts=options.restarts,
                poison=options.poison,
                rolls=options.rolls,
            )
            figures = chaos.verdict()
        finally:
            chaos.close()
    names = list(figures)
    for name, figure in figures.items():
        print(f"{figure:6d} {name}")
    print(f"{time.monotonic() - started:6.1f} seconds")
    return int(any(figures[name] for name in names[names.index("lost") :]))


if __name__ == "__main__":
    sys.exit(main())
