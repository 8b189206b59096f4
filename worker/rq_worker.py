"""RQ's in-process worker with a short lease, and a job that runs one known function whatever Redis says."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any, ClassVar

from redis import Redis
from rq import Queue, SimpleWorker
from rq.job import Job

from clipsynth.queue import connect

logger = logging.getLogger(__name__)


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
            maintenance_interval=lease_s,
        )

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
