"""Claiming: RQ's job as data only, the claim from the queue, and the set of claimed jobs."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, field
from typing import Any, ClassVar, NoReturn

from redis.exceptions import ResponseError
from rq import Queue
from rq.exceptions import InvalidJobOperation, NoSuchJobError
from rq.executions import Execution, ExecutionRegistry
from rq.job import Job
from rq.registry import StartedJobRegistry

from clipsynth.jobs.record import STATUS_FIELDS, JobStatusView, is_wrong_type
from clipsynth.redis_keys import RECORD
from clipsynth.schemas.generation import Problem, Status
from worker.engine import SamplingRequest
from worker.job_runner import JobRunner

logger = logging.getLogger(__name__)
# Jobs per call of the script.
MAX_CLAIMED = 32

# KEYS[1] queue, KEYS[2] intermediate list.
# ARGV[1] number of jobs, ARGV[2] key prefix of jobs, ARGV[3] key prefix of records, ARGV[4…] their fields.
# Returns per job its id, its hash (name, value, …) and these fields; an error where a key is no hash.
_CLAIM = """
local claimed = {}
while #claimed < tonumber(ARGV[1]) do
  local id = redis.call('LMOVE', KEYS[1], KEYS[2], 'LEFT', 'RIGHT')
  if not id then break end
  local job = redis.pcall('HGETALL', ARGV[2] .. id)
  table.insert(claimed, {id, job, redis.pcall('HMGET', ARGV[3] .. id, unpack(ARGV, 4))})
end
return claimed
"""


class GenerationJob(Job):
    """An RQ job as data only: a function, callback or webhook in its Redis record is never run."""

    runner: ClassVar[JobRunner]
    registries: ClassVar[dict[str, StartedJobRegistry]]

    @classmethod
    def bound_to(cls, runner: JobRunner) -> type[GenerationJob]:
        """Return a subclass whose jobs report a lost worker or an unreadable record to `runner`."""
        bound: type[GenerationJob] = type(cls.__name__, (cls,), {"runner": runner, "registries": {}})
        return bound

    @property
    def started_job_registry(self) -> StartedJobRegistry:
        """The registry of its queue; one for all jobs, because RQ takes long to make one."""
        if self.origin not in self.registries:
            self.registries[self.origin] = super().started_job_registry
        return self.registries[self.origin]

    @property
    def func(self) -> NoReturn:
        raise InvalidJobOperation("jobs have no function")

    @property
    def failure_callback(self) -> Callable[..., None]:
        """RQ calls this for a job whose lease ran out."""
        return lambda job, *_: self.runner.requeue(job.id)

    @property
    def success_callback(self) -> None:
        return None

    @property
    def stopped_callback(self) -> None:
        return None

    def send_webhooks(self, *_: Any, **__: Any) -> None:
        return None

    def restore(self, raw_data: Any) -> None:
        """Read a record.

        Raises:
            NoSuchJobError: it cannot be read; the generation has failed and the record is deleted.
        """
        try:
            super().restore(raw_data)
        except Exception as error:
            self._fail_unreadable(error)

    def refresh(self) -> None:
        """Fetch and read the record; raises as `restore`, and if there is none."""
        try:
            super().refresh()
        except ResponseError as error:
            if not is_wrong_type(error):
                raise
            self._fail_unreadable(error)

    def _fail_unreadable(self, error: Exception) -> NoReturn:
        logger.warning("job %s cannot be read: %s", self.id, error)
        self.runner.fail(self.id, "the record of the job cannot be read")
        self.connection.delete(self.key)
        raise NoSuchJobError(f"job {self.id} cannot be read") from error


class JobClaimer:
    """Moves jobs from a queue to RQ's intermediate list until they get a lease or are dropped."""

    def __init__(self, queue: Queue, job_class: type[Job]) -> None:
        self.queue, self.job_class = queue, job_class
        self._claim = queue.connection.register_script(_CLAIM)
        self._template = job_class(connection=queue.connection, serializer=queue.serializer)

    def claim(self, jobs: int) -> list[tuple[Job, JobStatusView | None]]:
        """Return up to `jobs` jobs with their public states; skip one without a readable record."""
        found: list[Any] = self._claim(
            keys=[self.queue.key, self.queue.intermediate_queue_key],
            args=[min(jobs, MAX_CLAIMED), self.job_class.key_for(""), RECORD, *STATUS_FIELDS],
        )
        claimed = []
        for raw_id, record, status_view in found:
            job = copy(self._template)
            job.id = raw_id.decode()
            try:
                job.restore(_pairs(record))
            except NoSuchJobError:
                self.drop(job)
            else:
                claimed.append((job, JobStatusView.read(status_view)))
        return claimed

    def drop(self, job: Job, execution: Execution | None = None) -> None:
        """Delete a job that will not run, and the `execution` of a claim that Redis carried out in part."""
        with self.queue.connection.pipeline() as pipeline:
            if execution is not None:
                # Deleted as a key, because it may be of another type.
                pipeline.delete(ExecutionRegistry(job.id, self.queue.connection).key)
                execution.delete(job, pipeline)
            pipeline.lrem(self.queue.intermediate_queue_key, 1, job.id)
            pipeline.delete(job.key)
            pipeline.execute()


def _pairs(record: Any) -> Any:
    """Return a script's hash as a dictionary; an error unchanged, which `restore` cannot read."""
    return dict(zip(record[::2], record[1::2], strict=True)) if isinstance(record, list) else record


@dataclass(eq=False)
class ClaimedJob:
    """A job with a lease, and its request in the engine."""

    job: Job
    execution: Execution
    request: SamplingRequest
    num_steps: int
    batched_with_others: bool
    status_view: JobStatusView
    attempt: str
    claimed_at: float = field(default_factory=time.monotonic)
    stopped_by: Status | Problem | None = None
    stopped_at: float = 0.0
    reported_step: int = 0
    reported_at: float = field(default_factory=time.monotonic)


class ClaimedJobs:
    """The jobs that this worker runs now, shared by the claiming, the finishing and the lease thread."""

    def __init__(self) -> None:
        self._jobs: dict[SamplingRequest, ClaimedJob] = {}
        self._lock = threading.Lock()

    def add(self, claimed: ClaimedJob) -> None:
        with self._lock:
            self._jobs[claimed.request] = claimed

    def get(self, request: SamplingRequest) -> ClaimedJob:
        with self._lock:
            return self._jobs[request]

    def remove(self, claimed: ClaimedJob) -> None:
        with self._lock:
            del self._jobs[claimed.request]

    def snapshot(self) -> list[ClaimedJob]:
        with self._lock:
            return list(self._jobs.values())

    def __len__(self) -> int:
        with self._lock:
            return len(self._jobs)
