"""Leases of claimed jobs and recovery of lost workers' jobs, in a thread with its own connection."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from typing import cast

from redis import Redis
from redis.exceptions import LockError, RedisError
from rq import Queue
from rq.job import Job
from rq.registry import StartedJobRegistry
from rq.timeouts import TimerDeathPenalty
from rq.worker_registration import clean_worker_registry

from clipsynth.jobs.queue import connect
from clipsynth.redis_keys import RECOVERY, UNCLAIMED
from worker.metrics import LEASE_RENEWALS, RECOVERED
from worker.rq_adapter.claim import ClaimedJobs

logger = logging.getLogger(__name__)

# KEYS[1] intermediate list, KEYS[2] queue, KEYS[3] hash of the times when unleased jobs were first found,
# KEYS[4] job; ARGV[1] job id. A job without a record is only removed.
REQUEUE = """
if redis.call('LREM', KEYS[1], 1, ARGV[1]) == 1 and redis.call('EXISTS', KEYS[4]) == 1 then
  redis.call('LPUSH', KEYS[2], ARGV[1])
end
redis.call('HDEL', KEYS[3], ARGV[1])
"""


class LeaseKeeper:
    """Renews this worker's leases and requeues jobs of lost workers, every `heartbeat_s`."""

    def __init__(
        self,
        queue: Queue,
        *,
        redis_url: str,
        job_class: type[Job],
        lease_s: int,
        heartbeat_s: float,
        claimed: ClaimedJobs,
        check: Callable[[], None],
    ) -> None:
        """Prepare; `check` is called at each heartbeat, whether Redis answers or not."""
        self.lease_s, self.heartbeat_s, self.claimed, self.check = lease_s, heartbeat_s, claimed, check
        self.redis: Redis = connect(redis_url)
        self.queue = Queue(
            queue.name, connection=self.redis, job_class=job_class, serializer=queue.serializer
        )
        self._found_key = UNCLAIMED + queue.name
        self._requeue = self.redis.register_script(REQUEUE)
        self._silent_until = 0.0
        self._answered_at = self.heartbeat_at = time.monotonic()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread; the first heartbeat is now."""
        self._thread = threading.Thread(target=self._run, name="lease", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread, if there is one, and close the connection."""
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
                # No worker could renew while Redis was away: give all of them the time to do so.
                self._silent_until = time.monotonic() + self.lease_s
                logger.warning("leases not renewed: %s", error)
            except Exception:
                logger.exception("jobs of lost workers not recovered")
            self._stop.wait(self.heartbeat_s)

    @property
    def away_s(self) -> float:
        """Seconds since Redis last answered; up to about `heartbeat_s` while it does."""
        return time.monotonic() - self._answered_at

    def renew(self) -> None:
        """Renew the lease of every claimed job."""
        with self.redis.pipeline() as pipeline:
            for claimed in self.claimed.snapshot():
                claimed.execution.heartbeat(claimed.job.started_job_registry, self.lease_s, pipeline)
            pipeline.execute()
        LEASE_RENEWALS.inc()

    def recover(self) -> None:
        """Requeue jobs of lost workers and prune RQ's records; one worker at a time."""
        queue = self.queue
        lock = self.redis.lock(RECOVERY + queue.name, timeout=self.lease_s, blocking=False)
        if not lock.acquire():
            return
        try:
            StartedJobRegistry(
                queue=queue,
                job_class=queue.job_class,
                serializer=queue.serializer,
                death_penalty_class=TimerDeathPenalty,
            ).cleanup()
            self._requeue_unleased()
            queue.finished_job_registry.cleanup()
            queue.failed_job_registry.cleanup()
            clean_worker_registry(queue)
        finally:
            with contextlib.suppress(LockError):
                lock.release()

    def _requeue_unleased(self) -> None:
        """Requeue jobs whose worker died between claim and lease; RQ itself waits a minute."""
        leased = self.queue.started_job_registry.get_job_and_execution_ids(cleanup=False)
        unleased = set(self.queue.intermediate_queue.get_job_ids()) - {job_id for job_id, _ in leased}
        raw = cast(dict[bytes, bytes], self.redis.hgetall(self._found_key))
        found_at = {job_id.decode(): float(at) for job_id, at in raw.items()}
        now = time.time()
        for job_id in found_at.keys() - unleased:
            self.redis.hdel(self._found_key, job_id)
        for job_id in unleased:
            if job_id not in found_at:
                self.redis.hset(self._found_key, job_id, str(now))
            elif now - found_at[job_id] >= self.lease_s:
                logger.warning("job %s was claimed but never leased; requeued", job_id)
                RECOVERED.inc()
                self.requeue([job_id])

    def requeue(self, ids: list[str]) -> None:
        """Move claimed jobs without a lease back to the front of the queue, in this order."""
        queue = self.queue
        for job_id in reversed(ids):
            job_key = queue.job_class.key_for(job_id)
            self._requeue(
                keys=[queue.intermediate_queue_key, queue.key, self._found_key, job_key], args=[job_id]
            )
