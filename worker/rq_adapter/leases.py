"""The lease of the jobs at hand, and the jobs of lost workers: one thread with a Redis connection of its own."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Collection
from typing import cast

from redis import Redis
from redis.exceptions import LockError, RedisError
from rq import Queue
from rq.executions import Execution
from rq.job import Job
from rq.registry import StartedJobRegistry
from rq.timeouts import TimerDeathPenalty
from rq.worker_registration import clean_worker_registry

from clipsynth.jobs.queue import connect
from worker.metrics import LEASE_RENEWALS, RECOVERED

logger = logging.getLogger(__name__)

# KEYS[1] intermediate list, KEYS[2] queue, KEYS[3] when each was first seen, KEYS[4] job; ARGV[1] job id. A job that is gone is only taken off.
REQUEUE = """
if redis.call('LREM', KEYS[1], 1, ARGV[1]) == 1 and redis.call('EXISTS', KEYS[4]) == 1 then
  redis.call('LPUSH', KEYS[2], ARGV[1])
end
redis.call('HDEL', KEYS[3], ARGV[1])
"""


class LeaseKeeper:
    """Every `heartbeat_s`: renews the leases of what this worker holds, then returns the jobs of workers whose leases ran out."""

    def __init__(
        self,
        queue: Queue,
        *,
        redis_url: str,
        job_class: type[Job],
        lease_s: int,
        heartbeat_s: float,
        held: Callable[[], Collection[tuple[Job, Execution]]],
        check: Callable[[], None],
    ) -> None:
        """Prepare; `check` is called each beat, whether Redis answers or not."""
        self.lease_s, self.heartbeat_s, self.held, self.check = lease_s, heartbeat_s, held, check
        self.redis: Redis = connect(redis_url)
        self.queue = Queue(
            queue.name, connection=self.redis, job_class=job_class, serializer=queue.serializer
        )
        self._seen_key = f"clipsynth:unclaimed:{queue.name}"
        self._requeue = self.redis.register_script(REQUEUE)
        self._silent_until = 0.0
        self._answered_at = self.heartbeat_at = time.monotonic()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Beat now and until `stop`, in a thread."""
        self._thread = threading.Thread(target=self._run, name="lease", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread, if there is one, and the connection."""
        self._stop.set()
        if self._thread:
            self._thread.join()
        self.redis.close()

    def _run(self) -> None:
        while not self._stop.is_set():
            self.heartbeat_at = time.monotonic()
            self.check()
            try:
                self.redis.ping()
                self._answered_at = time.monotonic()
                self.renew()
                if time.monotonic() >= self._silent_until:
                    self.recover()
            except RedisError as error:
                # While Redis was away nobody could renew; give the others the time to do so before they are taken for lost.
                self._silent_until = time.monotonic() + self.lease_s
                logger.warning("leases not renewed: %s", error)
            except Exception:
                logger.exception("jobs of lost workers not looked for")
            self._stop.wait(self.heartbeat_s)

    @property
    def away_s(self) -> float:
        """For how many seconds Redis has not answered; about `heartbeat_s` while it does."""
        return time.monotonic() - self._answered_at

    def renew(self) -> None:
        """Renew the lease of every job at hand."""
        with self.redis.pipeline() as pipeline:
            for job, execution in self.held():
                execution.heartbeat(job.started_job_registry, self.lease_s, pipeline)
            pipeline.execute()
        LEASE_RENEWALS.inc()

    def recover(self) -> None:
        """Put jobs of lost workers back on the queue and prune RQ's records of ended ones. One worker at a time does it."""
        queue = self.queue
        lock = self.redis.lock(f"clipsynth:recovery:{queue.name}", timeout=self.lease_s, blocking=False)
        if not lock.acquire():
            return
        try:
            StartedJobRegistry(
                queue=queue,
                job_class=queue.job_class,
                serializer=queue.serializer,
                death_penalty_class=TimerDeathPenalty,
            ).cleanup()
            self._requeue_unclaimed()
            queue.finished_job_registry.cleanup()
            queue.failed_job_registry.cleanup()
            clean_worker_registry(queue)
        finally:
            with contextlib.suppress(LockError):
                lock.release()

    def _requeue_unclaimed(self) -> None:
        """Put back what a worker took from the queue and did not live to claim; RQ itself waits a minute for that."""
        queue = self.queue
        taken = queue.intermediate_queue.get_job_ids()
        claimed = {
            job_id for job_id, _ in queue.started_job_registry.get_job_and_execution_ids(cleanup=False)
        }
        unclaimed = set(taken) - claimed
        seen = {
            k.decode(): float(v)
            for k, v in cast(dict[bytes, bytes], self.redis.hgetall(self._seen_key)).items()
        }
        now = time.time()
        for job_id in seen.keys() - unclaimed:
            self.redis.hdel(self._seen_key, job_id)
        for job_id in unclaimed:
            if job_id not in seen:
                self.redis.hset(self._seen_key, job_id, str(now))
            elif now - seen[job_id] >= self.lease_s:
                logger.warning("job %s was taken but not claimed; back on the queue", job_id)
                RECOVERED.inc()
                self.put_back([job_id])

    def put_back(self, ids: list[str]) -> None:
        """Put jobs that were taken, and not claimed, back to the front of the queue in this order."""
        for job_id in reversed(ids):
            keys = [
                self.queue.intermediate_queue_key,
                self.queue.key,
                self._seen_key,
                self.queue.job_class.key_for(job_id),
            ]
            self._requeue(keys=keys, args=[job_id])
