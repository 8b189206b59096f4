"""RQ's in-process worker with a short lease, and a job that runs one known function whatever Redis says."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any, ClassVar

from redis import Redis
from rq import Queue, SimpleWorker
from rq.intermediate_queue import IntermediateQueue
from rq.job import Job
from rq.registry import StartedJobRegistry
from rq.timeouts import TimerDeathPenalty

from clipsynth.queue import connect

logger = logging.getLogger(__name__)
RQ_MAINTENANCE_S = 86_400  # RQ's own pass is lock-guarded for 15 minutes, too slow for a lost worker; `recover` does it instead


class GenerationJob(Job):
    """A job whose function and callbacks are the worker's own: names stored in Redis are never imported."""

    run: ClassVar[Callable[[str, dict[str, Any]], None]]
    abandoned: ClassVar[Callable[[str, int], None]]

    @property
    def func(self) -> Callable[[str, dict[str, Any]], None]:
        return type(self).run

    @property
    def failure_callback(self) -> Callable[..., None]:
        return lambda job, *_: type(self).abandoned(job.id, job.retries_left or 0)

    @property
    def success_callback(self) -> None:
        return None

    @property
    def stopped_callback(self) -> None:
        return None


class LeaseWorker(SimpleWorker):
    """Runs jobs in this process; a beat keeps the lease of the job at hand, so that a killed worker is noticed within `lease_s`."""

    def __init__(self, queue: Queue, *, redis_url: str, lease_s: int) -> None:
        self.lease_s = lease_s
        self._beat_redis: Redis = connect(redis_url)
        super().__init__(
            [queue],
            connection=queue.connection,
            job_class=GenerationJob,
            serializer=queue.serializer,
            worker_ttl=lease_s,
            maintenance_interval=RQ_MAINTENANCE_S,
        )

    def start_recovery(self) -> None:
        """Look for jobs of lost workers now and once per lease, in a thread of its own."""
        threading.Thread(target=self._keep_recovering, name="recovery", daemon=True).start()

    def _keep_recovering(self) -> None:
        while True:
            try:
                self.recover()
            except Exception:
                logger.warning("jobs of lost workers not looked for", exc_info=True)
            time.sleep(self.lease_s / 2)

    def recover(self) -> None:
        """Put jobs whose lease has run out back on the queue, or fail them after their last attempt. One worker at a time does it."""
        queue = Queue(
            self.queues[0].name,
            connection=self._beat_redis,
            job_class=GenerationJob,
            serializer=self.serializer,
        )
        lock = self._beat_redis.lock(f"clipsynth:recovery:{queue.name}", timeout=self.lease_s, blocking=False)
        if not lock.acquire():
            return
        try:
            StartedJobRegistry(
                queue=queue,
                job_class=GenerationJob,
                serializer=self.serializer,
                death_penalty_class=TimerDeathPenalty,
            ).cleanup()
            IntermediateQueue(queue.key, self._beat_redis).cleanup(self, queue)
        finally:
            lock.release()

    def get_heartbeat_ttl(self, job: Job, working_time: float = 0.0) -> int:
        return self.lease_s

    def execute_job(self, job: Job, queue: Queue) -> None:
        execution = self.prepare_execution(job)
        done = threading.Event()

        def beat() -> None:
            while not done.wait(self.lease_s / 4):
                try:
                    with self._beat_redis.pipeline() as pipeline:
                        execution.heartbeat(job.started_job_registry, self.lease_s, pipeline)
                        pipeline.execute()
                except Exception:
                    logger.warning("lease not renewed", exc_info=True)

        thread = threading.Thread(target=beat, name="lease", daemon=True)
        thread.start()
        try:
            self.perform_job(job, queue, execution)
        finally:
            done.set()
            thread.join()
        self.set_state("idle")
