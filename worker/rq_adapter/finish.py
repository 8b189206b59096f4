"""Final states of ended jobs: one thread writes them in one transaction per batch."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue

from redis import Redis
from redis.client import Pipeline
from redis.exceptions import ConnectionError, OutOfMemoryError, ReadOnlyError, TimeoutError
from rq import SimpleWorker
from rq.executions import Execution
from rq.job import Job, JobStatus
from rq.utils import now as rq_now

from clipsynth.jobs.store import JobStore
from clipsynth.log import about
from clipsynth.schemas.generation import Status
from worker.engine import SamplingRequest
from worker.job_runner import JobRunner
from worker.metrics import count_finished
from worker.rq_adapter.claim import ClaimedJob, ClaimedJobs

logger = logging.getLogger(__name__)
# After Redis did not answer.
REDIS_PAUSE_S = 0.5
# Redis carries out the other commands of a transaction in which one fails, so the next attempt may succeed.
ATTEMPTS = 3


class Finalizer:
    """Finishes the jobs that arrive in `ended` and removes them from `claimed`.

    Attributes:
        finished: set whenever jobs were finished.
    """

    def __init__(
        self,
        ended: SimpleQueue[SamplingRequest],
        claimed: ClaimedJobs,
        runner: JobRunner,
        redis: Redis,
        record: Callable[[Job, Execution, Status, Pipeline], None],
    ) -> None:
        """Start the thread; `record` writes RQ's own record of a finished job to a pipeline."""
        self.ended, self.claimed, self.runner, self.redis, self.record = ended, claimed, runner, redis, record
        self.finished = threading.Event()
        self._thread = threading.Thread(target=self._run, name="finish", daemon=True)
        self._thread.start()

    @property
    def crashed(self) -> bool:
        return not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            batch = [self.claimed.get(self.ended.get())]
            with contextlib.suppress(Empty):
                while True:
                    batch.append(self.claimed.get(self.ended.get_nowait()))
            # If the transaction fails, each job is finished alone.
            if not self._try(batch):
                for claimed in batch:
                    if not any(self._try([claimed]) for _ in range(ATTEMPTS)):
                        logger.error("job %s is not finished", claimed.job.id)
            for claimed in batch:
                self.claimed.remove(claimed)
            self.finished.set()

    def _try(self, batch: list[ClaimedJob]) -> bool:
        """Finish jobs, waiting as long as Redis is away or refuses writes; return False on another error."""
        while True:
            try:
                self._finish(batch)
                return True
            except (ConnectionError, TimeoutError, OutOfMemoryError, ReadOnlyError) as error:
                logger.warning("Redis: %s", error)
                time.sleep(REDIS_PAUSE_S)
            except Exception:
                logger.exception("%d jobs could not be finished", len(batch))
                return False

    def _finish(self, batch: list[ClaimedJob]) -> None:
        ends = []
        for claimed in batch:
            with about(claimed.job.id, claimed.job.meta):
                end = self.runner.final_state(
                    claimed.job.id, claimed.attempt, claimed.request, claimed.stopped_by
                )
                ends.append(end)
        with self.runner.state.pipeline(self.redis) as pipeline:
            for end in ends:
                self.runner.state.queue_end(pipeline, end)
            for claimed, end in zip(batch, ends, strict=True):
                self.record(claimed.job, claimed.execution, end.status, pipeline)
            results = pipeline.execute()
        for claimed, end, result in zip(batch, ends, results, strict=False):
            made = JobStore.was_made(result)
            with about(claimed.job.id, claimed.job.meta):
                self.runner.clean_up(end, claimed.attempt, made=made, retried=claimed.status_view.run_alone)
            seconds = time.monotonic() - claimed.claimed_at
            model = self.runner.model.manifest.name
            count_finished(model, claimed.job, claimed.request, end.status if made else None, seconds)


def record_end(
    worker: SimpleWorker, job: Job, execution: Execution, status: Status, pipeline: Pipeline
) -> None:
    """Write RQ's record of a finished job, as its handle_job_success and handle_job_failure do.

    RQ keeps no record of a success: the public state is one. Its code for dependents, repeats, retries and
    rate limits is left out, because these jobs have none.
    """
    job.ended_at = rq_now()
    worker.increment_total_working_time(job.ended_at - execution.created_at, pipeline)
    if status is Status.SUCCEEDED:
        worker.increment_successful_job_count(pipeline)
        pipeline.delete(job.key)
    else:
        worker.increment_failed_job_count(pipeline)
        stopped = status in (Status.CANCELED, Status.EXPIRED)
        job.set_status(JobStatus.STOPPED if stopped else JobStatus.FAILED, pipeline)
        job._handle_failure(
            str(status),
            pipeline,
            worker_name=worker.name,
            execution_id=execution.id,
            execution_started_at=execution.created_at,
            execution_ended_at=job.ended_at,
        )
    worker.cleanup_execution(job, pipeline, execution)
