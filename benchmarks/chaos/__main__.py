"""Run jobs while workers, Redis (AOF, fsync always) and the disk fail.

    python -m benchmarks.chaos                                     # 1,000 jobs and all faults
    python -m benchmarks.chaos --jobs 60 --kills 5 --restarts 1 --pauses 1 --disks 0 --memories 1
    python -m benchmarks.chaos --kills 0 --restarts 0 --pauses 0 --disks 0 --memories 0 --rolls 50

The model is simulated, so that a restart is quick. Half of the jobs are long sounds, loops, timelines, or
variations and continuations of earlier jobs. A fifth of the jobs is canceled at random times. Ends with
code 1 unless every canceled job is canceled, every job of a model whose worker never comes back expired, each
other one succeeded, none is stuck or ended twice, and no file changed after its generation had succeeded. A
job that runs while the disk is full may fail with `storage_failed`.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import multiprocessing
import os
import random
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import typer
from redis.exceptions import RedisError

from benchmarks.chaos.files import FileWatch, empty, fill, small_disk
from benchmarks.chaos.verdict import find, verdict
from benchmarks.load import simulated
from benchmarks.load.workload import MODEL, POISON, payload
from clipsynth.errors import AlreadyEnded, ServeError, StorageUnavailable
from clipsynth.jobs.queue import connect, withdraw
from clipsynth.jobs.store import JobStore, new_id
from clipsynth.redis_keys import ALIVE
from clipsynth.schemas.generation import Status
from clipsynth.schemas.prompts import StoredParent
from clipsynth.services import janitor
from clipsynth.services.embedded_redis import EmbeddedRedis
from clipsynth.settings import Settings
from clipsynth.storage import Storage, audio_key, parent_key

WORKERS = 2
STEP_S = 0.005
# Mean time between two faults.
FAULT_S = 0.6
OUTAGE_S = 0.3
# Longer than a lease.
PAUSE_S = 4.0
FULL_S = 1.5
QUEUE_TIMEOUT_S = 20.0
STUCK_S = 120.0
# Share of the jobs that start from the sound of an earlier one.
REMADE = 0.25
# A model whose worker never comes back.
GONE = "gone"
_ITEMS = [{"text": "rain", "start_s": 0.0, "end_s": 12.0}, {"text": "a dog", "start_s": 4.0, "end_s": 6.0}]
KINDS: list[dict[str, object]] = [
    {},
    {"duration_s": 25.0},
    {"duration_s": 8.0, "loop": True},
    {"duration_s": 14.0, "prompt": None, "timeline": _ITEMS},
]
REMAKES: list[dict[str, float]] = [{"strength": 0.0}, {"strength": 0.5}, {"extend_s": 2.0}]


class Chaos:
    """One run in a folder of its own."""

    has_full_disks = False

    def __init__(self, folder: Path, *, seed: int, max_attempts: int) -> None:
        self.draw = random.Random(seed)
        self.redis_server = EmbeddedRedis(folder)
        fast = {"lease_s": 2, "heartbeat_s": 0.5, "max_attempts": max_attempts}
        fast |= {"queue_timeout_s": QUEUE_TIMEOUT_S}
        self.settings = Settings(redis_url=self.redis_server.url, data_dir=folder, **fast)
        self.redis = connect(self.redis_server.url)
        self.state = JobStore.from_settings(self.redis, self.settings)
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["benchmarks.load.simulated", "worker.rq_adapter.worker"])
        self.workers = [self.new_worker() for _ in range(WORKERS)]
        self.jobs: dict[str, str] = {}
        self.canceled: set[str] = set()
        self.remade: set[str] = set()
        self.losses = 0
        self.later: list[tuple[float, Callable[[], None]]] = []
        self.state.announce(simulated.model_info(simulated.MANIFEST).model_copy(update={"name": GONE}))
        self.redis.delete(ALIVE + GONE)
        self.watch = FileWatch(self.state, folder / "results", lambda: list(self.jobs))
        self.stop = threading.Event()
        self.janitor = threading.Thread(target=janitor.run, args=(self.settings, self.stop), daemon=True)
        self.janitor.start()

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

    def keep_up(self) -> None:
        """Do what a supervisor does, and what was left for later."""
        self.replace_ended_workers()
        if not self.redis_server.is_running():
            with contextlib.suppress(ServeError):
                self.redis_server.start()
        now = time.monotonic()
        due, self.later = [e for e in self.later if e[0] <= now], [e for e in self.later if e[0] > now]
        for _, act in due:
            act()

    def retry(self, act: Callable[[], None]) -> None:
        """Act until Redis answers, as a client does that gets no answer."""
        while True:
            try:
                return act()
            except RedisError:
                self.keep_up()
                time.sleep(0.05)

    def after(self, seconds: float, act: Callable[[], None]) -> None:
        self.later.append((time.monotonic() + seconds, act))

    def submit(self, prompt: str = "rain", *, remade: float = REMADE) -> None:
        generation_id = new_id()
        sizes: dict[str, object] = {
            "num_inference_steps": self.draw.randint(4, 40),
            "num_outputs": self.draw.randint(1, 3),
        }
        model = GONE if prompt == GONE else MODEL
        kind = self.draw.choices(KINDS, [6, 1, 1, 1])[0] if prompt == "rain" else {}
        sizes |= {"model": model, "prompt": prompt, "guidance_scale": self.draw.choice([1.0, 3.0]), **kind}
        earlier = list(self.watch.noted) if prompt == "rain" and self.draw.random() < remade else []
        parent = self.draw.choice(earlier) if earlier else None
        how = self.draw.choice(REMAKES)

        def act() -> None:
            # a job may have been accepted though the answer was lost
            if find(self.state, generation_id) is None:
                own = self.remake(generation_id, parent, how) if parent else {}
                self.state.submit(generation_id, payload(**sizes | own))

        self.retry(act)
        self.jobs[generation_id] = prompt

    def remake(self, generation_id: str, parent_id: str, how: dict[str, float]) -> dict[str, object]:
        """Store the sound of an earlier job, as the API does; return what varies or continues it."""
        parent, storage = self.state.get(parent_id), Storage(self.settings.results_url)
        source = audio_key(parent.folder, 0, "wav")
        data, key = storage.get(source), parent_key(generation_id, source)
        self.state.expect_files(generation_id)
        try:
            storage.put(key, data)
        except StorageUnavailable:  # while the disk is full
            return {}
        self.remade.add(generation_id)
        sha256 = hashlib.sha256(data).hexdigest()
        stored = StoredParent(id=parent_id, output=0, audio_key=key, audio_sha256=sha256, **how)
        return {"parent": stored, "duration_s": parent.input.duration_s + how.get("extend_s", 0.0)}

    def cancel(self) -> None:
        left = [
            i for i, prompt in self.jobs.items() if prompt not in (POISON, GONE) and i not in self.canceled
        ]
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

    def pause_worker(self) -> None:
        """Pause a worker for longer than its leases, then let it continue."""
        self.replace_ended_workers()
        worker = self.draw.choice(self.workers)
        os.kill(worker.pid or 0, signal.SIGSTOP)
        self.after(PAUSE_S, lambda: self.resume(worker))

    def resume(self, worker: ForkServerProcess) -> None:
        # A closed process has no id, and an ended one no longer exists.
        with contextlib.suppress(ValueError, ProcessLookupError):
            os.kill(worker.pid or 0, signal.SIGCONT)

    def fill_disk(self) -> None:
        """Leave no room for Redis and results for a while. Redis ends at its next write."""
        fill(self.settings.data_dir)
        self.after(FULL_S, lambda: empty(self.settings.data_dir))

    def fill_memory(self) -> None:
        """Have Redis refuse writes for a while."""
        self.retry(lambda: self.set_memory("1"))
        self.after(FULL_S, lambda: self.retry(lambda: self.set_memory("0")))

    def set_memory(self, most: str) -> None:
        self.redis.config_set("maxmemory", most)

    def roll_worker(self) -> None:
        """Restart a worker as an update does: SIGTERM, and a new one once it has ended."""
        self.replace_ended_workers()
        self.draw.choice(self.workers).terminate()

    def restart_redis(self) -> None:
        self.redis_server.process.kill()
        self.redis_server.process.wait()
        time.sleep(OUTAGE_S)
        with contextlib.suppress(ServeError):  # while the disk is full
            self.redis_server.start()

    def run(self, *, jobs: int, poison: int, gone: int, faults: dict[str, int]) -> None:
        """Do everything at random times, then wait for the end of every job."""
        span = max(2.0, FAULT_S * sum(faults.values()))
        acts: list[Callable[[], None]] = [self.submit] * jobs + [lambda: self.submit(POISON)] * poison
        acts += [lambda: self.submit(GONE)] * gone
        for name, number in faults.items():
            acts += [getattr(self, name)] * number
        plan = [(self.draw.uniform(0.0, span), act) for act in acts]
        plan += [(self.draw.uniform(0.1 * span, span), self.cancel) for _ in range(jobs // 5)]
        started = time.monotonic()
        for at, act in sorted(plan, key=lambda entry: entry[0]):
            while time.monotonic() - started < at:
                self.keep_up()
                time.sleep(0.01)
            act()
        deadline = time.monotonic() + STUCK_S
        # On a slow machine no job may have ended so far.
        while not self.remade and time.monotonic() < deadline:
            self.keep_up()
            time.sleep(0.1)
            if self.watch.noted:
                self.submit(remade=1.0)
        while time.monotonic() < deadline and (self.later or self.count_ended() < len(self.jobs)):
            self.keep_up()
            time.sleep(0.1)

    def count_ended(self) -> int:
        try:
            return sum(self.state.ended().values())
        except RedisError:
            return 0

    def verdict(self) -> dict[str, int]:
        ends = {POISON: Status.FAILED, GONE: Status.EXPIRED}
        expected = {i: ends.get(p, Status.SUCCEEDED) for i, p in self.jobs.items()}
        expected |= dict.fromkeys(self.canceled, Status.CANCELED)
        storage = Storage(self.settings.results_url)
        excuses = {"storage_failed"} if self.has_full_disks else set()
        files = self.watch.stop()
        found = verdict(self.redis, self.state, storage, expected, excuses=excuses)
        found["faults"] += files["files changed after success"]
        counts = {"workers ended": self.losses, "variations and continuations": len(self.remade)}
        return counts | files | found

    def close(self) -> None:
        """End the workers as a rolling restart does, and Redis."""
        self.stop.set()
        self.janitor.join()
        for worker in self.workers:
            self.resume(worker)
            worker.terminate()
        for worker in self.workers:
            worker.join(30)
        self.redis.close()
        self.redis_server.stop()


def main(
    jobs: int = 1000, kills: int = 100, restarts: int = 10, pauses: int = 20, disks: int = 2,
    memories: int = 5, rolls: int = 0, gone: int = 10, poison: int = 0, seed: int = 0, max_attempts: int = 20,
) -> None:  # fmt: skip
    """Run jobs while workers, Redis and the disk fail; exit with code 1 on any fault.

    `--kills` counts kill -9 of a worker, `--restarts` kills of Redis, `--pauses` SIGSTOP of a worker for more
    than its leases, `--disks` full disks (as root), `--memories` times at which Redis is at its `maxmemory`,
    `--rolls` SIGTERM to a worker, `--gone` jobs of a model without a worker, `--poison` jobs that
    kill their worker. `--max-attempts` is high: a random kill is no job's fault.
    """
    logging.disable(logging.WARNING)
    started = time.monotonic()
    faults = {
        "kill_worker": kills,
        "restart_redis": restarts,
        "pause_worker": pauses,
        "fill_disk": disks,
        "fill_memory": memories,
        "roll_worker": rolls,
    }
    with (
        tempfile.TemporaryDirectory(prefix="chaos-") as folder,
        small_disk(Path(folder)) if disks else contextlib.nullcontext(),
    ):
        chaos = Chaos(Path(folder), seed=seed, max_attempts=max_attempts)
        chaos.has_full_disks = disks > 0
        try:
            chaos.run(jobs=jobs, poison=poison, gone=gone, faults=faults)
            figures = chaos.verdict()
        finally:
            chaos.close()
    for name, figure in figures.items():
        print(f"{figure:6d} {name}")
    print(f"{time.monotonic() - started:6.1f} seconds")
    raise SystemExit(figures["faults"] > 0)


if __name__ == "__main__":
    typer.run(main)
