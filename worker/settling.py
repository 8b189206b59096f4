"""Ended jobs get their final states: a thread takes all that have ended meanwhile, and writes them down together."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue

from redis import Redis
from redis.client import Pipeline
from redis.exceptions import RedisError
from rq.executions import Execution
from rq.job import Job

from clipsynth.logs import about
from clipsynth.schemas import Problem, Status
from clipsynth.state import State
from worker.engine import Ticket
from worker.jobs import Jobs

logger = logging.getLogger(__name__)
REDIS_PAUSE_S = 0.5  # after Redis did not answer


@dataclass(eq=False)
class Held:
    """A claimed job; `company` is whether others ran beside it."""

    job: Job
    execution: Execution
    ticket: Ticket
    num_steps: int
    company: bool
    deadline_at: float | None
    claimed_at: float = field(default_factory=time.monotonic)
    stopped_by: Status | Problem | None = None
    stopped_at: float = 0.0
    told_step: int = 0
    told_at: float = field(default_factory=time.monotonic)


class Settler:
    """Settles what comes out of `ended` and forgets it in `held`. That is one transaction, however many jobs it is of.

    `record` has RQ note a job's end on a pipeline. `news` is set whenever jobs were settled.
    """

    def __init__(
        self,
        ended: SimpleQueue[Ticket],
        jobs: Jobs,
        redis: Redis,
        record: Callable[[Job, Execution, Status, Pipeline], None],
    ) -> None:
        self.ended, self.jobs, self.redis, self.record = ended, jobs, redis, record
        self.held: dict[Ticket, Held] = {}
        self.news = threading.Event()
        threading.Thread(target=self._run, name="settle", daemon=True).start()

    def _run(self) -> None:
        while True:
            batch = [self.held[self.ended.get()]]
            try:
                while True:
                    batch.append(self.held[self.ended.get_nowait()])
            except Empty:
                pass
            self._insist(batch)

    def _insist(self, batch: list[Held]) -> None:
        """Settle jobs, however long Redis is away. One that cannot be settled does not keep the others from it."""
        while True:
            try:
                self._settle(batch)
                break
            except RedisError as error:
                logger.warning("Redis: %s", error)
                time.sleep(REDIS_PAUSE_S)
            except Exception:
                if len(batch) > 1:
                    for held in batch:
                        self._insist([held])
                    return
                logger.exception("job %s is not settled", batch[0].job.id)
                break
        for held in batch:
            del self.held[held.ticket]
        self.news.set()

    def _settle(self, batch: list[Held]) -> None:
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
                self.jobs.confirm(outcome, made=State.was_made(result))
