"""Ended jobs get their final states: a thread takes all that have ended meanwhile, and writes them down together."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue

from redis import Redis
from redis.client import Pipeline
from redis.exceptions import ConnectionError, TimeoutError
from rq.executions import Execution
from rq.job import Job

from clipsynth.jobs.store import JobStore
from clipsynth.log import about
from clipsynth.schemas.generation import Problem, Status
from worker.engine import SamplingRequest
from worker.job_runner import JobRunner
from worker.metrics import settled

logger = logging.getLogger(__name__)
REDIS_PAUSE_S = 0.5  # after Redis did not answer
ATTEMPTS = 3  # Redis carries out the rest of a transaction of which a command fails: what is left may be possible now


@dataclass(eq=False)
class ClaimedJob:
    """A claimed job; `company` is whether others ran beside it."""

    job: Job
    execution: Execution
    ticket: SamplingRequest
    num_steps: int
    batched_with_others: bool
    deadline_at: float | None
    claimed_at: float = field(default_factory=time.monotonic)
    stopped_by: Status | Problem | None = None
    stopped_at: float = 0.0
    reported_step: int = 0
    reported_at: float = field(default_factory=time.monotonic)


class Finalizer:
    """Settles what comes out of `ended` and forgets it in `held`. That is one transaction, however many jobs it is of.

    `record` has RQ note a job's end on a pipeline. `news` is set whenever jobs were settled.
    """

    def __init__(
        self,
        ended: SimpleQueue[SamplingRequest],
        jobs: JobRunner,
        redis: Redis,
        record: Callable[[Job, Execution, Status, Pipeline], None],
    ) -> None:
        self.ended, self.jobs, self.redis, self.record = ended, jobs, redis, record
        self.held: dict[SamplingRequest, ClaimedJob] = {}
        self.news = threading.Event()
        self._thread = threading.Thread(target=self._run, name="settle", daemon=True)
        self._thread.start()

    @property
    def crashed(self) -> bool:
        return not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            batch = [self.held[self.ended.get()]]
            with contextlib.suppress(Empty):
                while True:
                    batch.append(self.held[self.ended.get_nowait()])
            if not self._try(batch):
                for held in batch:  # one that cannot be settled does not keep the others from it
                    if not any(self._try([held]) for _ in range(ATTEMPTS)):
                        logger.error("job %s is not settled", held.job.id)
            for held in batch:
                del self.held[held.ticket]
            self.news.set()

    def _try(self, batch: list[ClaimedJob]) -> bool:
        """Settle jobs, however long Redis is away; return whether it could be done."""
        while True:
            try:
                self._settle(batch)
                return True
            except (ConnectionError, TimeoutError) as error:
                logger.warning("Redis: %s", error)
                time.sleep(REDIS_PAUSE_S)
            except Exception:
                logger.exception("%d jobs could not be settled", len(batch))
                return False

    def _settle(self, batch: list[ClaimedJob]) -> None:
        outcomes = []
        for held in batch:
            with about(held.job.id, held.job.meta):
                outcomes.append(self.jobs.outcome(held.job.id, held.ticket, held.stopped_by))
        with self.redis.pipeline() as pipeline:
            for outcome in outcomes:
                self.jobs.state.end(outcome, pipeline)
            for held, outcome in zip(batch, outcomes, strict=True):
                self.record(held.job, held.execution, outcome.status, pipeline)
            results = pipeline.execute()
        for held, outcome, result in zip(batch, outcomes, results, strict=False):
            with about(held.job.id, held.job.meta):
                made = JobStore.was_made(result)
                self.jobs.confirm(outcome, made=made)
            seconds = time.monotonic() - held.claimed_at
            model = self.jobs.model.manifest.name
            settled(model, held.job, held.ticket, outcome.status if made else None, seconds)
