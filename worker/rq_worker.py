"""RQ's in-process worker with a short lease, and a job that runs one known function whatever Redis says."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from typing import Any, ClassVar, cast

from redis import Redis
from redis.exceptions import LockError
from rq import Queue, SimpleWorker
from rq.job import Job
from rq.registry import StartedJobRegistry
from rq.timeouts import TimerDeathPenalty
from rq.worker_registration import clean_worker_registry

from clipsynth.queue import connect

logger = logging.getLogger(__name__)
RQ_MAINTENANCE_S = 86_400  # RQ's own pass is lock-guarded for 15 minutes, too slow for a lost worker; `recover` does it instead

# KEYS[1] intermediate list, KEYS[2] queue, KEYS[3] when each was first seen; ARGV[1] job id.
_REQUEUE = """
if redis.call('LREM', KEYS[1], 1, ARGV[1]) == 1 then redis.call('LPUSH', KEYS[2], ARGV[1]) end
redis.call('HDEL', KEYS[3], ARGV[1])
"""


class GenerationJob(Job):
    """A job whose function and callbacks are the worker's own: names stored in Redis are never imported."""

    run: ClassVar[Callable[[str, dict[str, Any]], None]]
    abandoned: ClassVar[Callable[[str], None]]

    @property
    def func(self) -> Callable[[str, dict[str, Any]], None]:
        return type(self).run

    @property
    def failure_callback(self) -> Callable[..., None]:
        return lambda job, *_: type(self).abandoned(job.id)

    @property
    def success_callback(self) -> None:
        return None

    @property
    def stopped_callback(self) -> None:
        return None


class LeaseWorker(SimpleWorker):
    """Runs jobs in this process; a beat keeps the lease of the job at hand, so that a killed worker is noticed within `lease_s`."""

    def __init__(self, queue: Queue, *, redis_url: str, lease_s: int, beat_s: float) -> None:
        self.lease_s, self.beat_s = lease_s, beat_s
        self._beat_redis: Redis = connect(redis_url)
        self._requeue = self._beat_redis.register_script(_REQUEUE)
        super().__init__(
            [queue],
            connection=queue.connection,
            job_class=GenerationJob,
            serializer=queue.serializer,
            worker_ttl=lease_s,
            maintenance_interval=RQ_MAINTENANCE_S,
        )

    def start_recovery(self) -> None:
        """Look for jobs of lost workers now and once per beat, in a thread of its own."""
        threading.Thread(target=self._keep_recovering, name="recovery", daemon=True).start()

    def _keep_recovering(self) -> None:
        while True:
            try:
                self.recover()
            except Exception:
                logger.warning("jobs of lost workers not looked for", exc_info=True)
            time.sleep(self.beat_s)

    def recover(self) -> None:
        """Put jobs of lost workers back on the queue and prune RQ's records of ended ones. One worker at a time does it."""
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
            self._requeue_unclaimed(queue)
            queue.finished_job_registry.cleanup()
            queue.failed_job_registry.cleanup()
            clean_worker_registry(queue)
        finally:
            with contextlib.suppress(LockError):
                lock.release()

    def _requeue_unclaimed(self, queue: Queue) -> None:
        """Put back what a worker took from the queue and did not live to claim; RQ itself waits a minute for that."""
        taken = queue.intermediate_queue.get_job_ids()
        claimed = {
            job_id for job_id, _ in queue.started_job_registry.get_job_and_execution_ids(cleanup=False)
        }
        unclaimed = set(taken) - claimed
        seen_key = f"clipsynth:unclaimed:{queue.name}"
        seen = {
            k.decode(): float(v)
            for k, v in cast(dict[bytes, bytes], self._beat_redis.hgetall(seen_key)).items()
        }
        now = time.time()
        for job_id in seen.keys() - unclaimed:
            self._beat_redis.hdel(seen_key, job_id)
        for job_id in unclaimed:
            if job_id not in seen:
                self._beat_redis.hset(seen_key, job_id, str(now))
            elif now - seen[job_id] >= self.lease_s:
                logger.warning("job %s was taken but not claimed; back on the queue", job_id)
                self._requeue(keys=[queue.intermediate_queue_key, queue.key, seen_key], args=[job_id])

    def get_heartbeat_ttl(self, job: Job, working_time: float = 0.0) -> int:
        return self.lease_s

    def execute_job(self, job: Job, queue: Queue) -> None:
        execution = self.prepare_execution(job)
        done = threading.Event()

        def beat() -> None:
            while not done.wait(self.beat_s):
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
