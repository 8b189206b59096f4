"""RQ's in-process worker with many jobs at a time: claims between steps, short leases, and one known function whatever Redis says."""

from __future__ import annotations

import contextlib
import logging
import os
import queue as queues
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from time import monotonic as now
from typing import Any

from redis.exceptions import RedisError
from rq import Queue, SimpleWorker
from rq.exceptions import NoSuchJobError, StopRequested
from rq.executions import Execution
from rq.job import Job
from rq.suspension import is_suspended
from rq.utils import now as rq_now
from rq.worker.base import WorkerStatus

from clipsynth.logs import about
from clipsynth.record import Standing
from clipsynth.schemas import JobPayload, Problem, Progress, Status
from worker.engine import Engine, Ticket
from worker.jobs import Jobs
from worker.metrics import JOB_SECONDS, settled
from worker.recovery import Recovery
from worker.rq_job import GenerationJob

logger = logging.getLogger(__name__)
RQ_MAINTENANCE_S = 86_400  # RQ's own pass is lock-guarded for 15 minutes, too slow for a lost worker; worker/recovery.py does it instead
SETTLERS = 8  # threads
LOOP_S = 0.01  # longest wait for a job to end before the queue is looked at again
WATCH_S = 0.05
PROGRESS_S = 0.25
DUTY_S = 1.0
REDIS_PAUSE_S = 0.5
STALL_S = 120.0  # a job that was told to stop and did not within this time shows that the process hangs
MAX_CLAIMED = 16  # in one look at the queue
AHEAD = 1.5  # load claimed, as a share of the limit: what waits is prepared while others run


@dataclass(eq=False)
class _Held:
    """A claimed job."""

    job: Job
    queue: Queue
    execution: Execution
    ticket: Ticket
    num_steps: int
    company: bool
    claimed_at: float = field(default_factory=now)
    stopped_by: Status | Problem | None = None
    stopped_at: float = 0.0
    told_step: int = 0
    told_at: float = 0.0
    settling: Future[bool] | None = None


class BatchWorker(SimpleWorker):
    """Claims jobs while others run, as long as the engine has room, and settles each through RQ."""

    def __init__(
        self, queue: Queue, *, redis_url: str, lease_s: int, beat_s: float, jobs: Jobs, engine: Engine
    ) -> None:
        GenerationJob.abandoned = staticmethod(jobs.abandoned)
        GenerationJob.unreadable = staticmethod(
            lambda i: jobs.refuse(i, "the record of the job cannot be read")
        )
        self.lease_s, self.jobs, self.engine = lease_s, jobs, engine
        self._held: dict[Ticket, _Held] = {}
        self._settlers = ThreadPoolExecutor(SETTLERS, thread_name_prefix="settle")
        self._stopping = threading.Lock()
        self._closed = False  # nothing more is claimed until what runs has ended
        self._suspended = False
        self._due = {"duty": 0.0, "watch": 0.0, "redis": 0.0}
        self._swap: Callable[[], None] | None = None
        super().__init__(
            [queue],
            connection=queue.connection,
            job_class=GenerationJob,
            serializer=queue.serializer,
            worker_ttl=lease_s,
            maintenance_interval=RQ_MAINTENANCE_S,
        )
        self.recovery = Recovery(
            queue,
            redis_url=redis_url,
            job_class=GenerationJob,
            lease_s=lease_s,
            beat_s=beat_s,
            held=lambda: [(held.job, held.execution) for held in list(self._held.values())],
            check=self._exit_if_stuck,
        )

    # ------------------------------------------------------------------------------------------- what RQ calls

    def get_heartbeat_ttl(self, job: Job, working_time: float = 0.0) -> int:
        return self.lease_s

    def heartbeat(self, *args: Any, **kwargs: Any) -> None:
        if not args and not kwargs:  # RQ's loop calls it so
            self._swap_if_idle()
        with contextlib.suppress(RedisError):  # RQ's loop would end the process
            super().heartbeat(*args, **kwargs)

    def set_shutdown_requested_date(self) -> None:
        with contextlib.suppress(RedisError):  # it is called by a signal, wherever the process is
            super().set_shutdown_requested_date()

    def request_stop_execution(self, execution_id: str) -> None:
        """RQ's stop command: cancel one of the jobs at hand. Called by RQ's subscription, in a thread."""
        execution = self.executions.get(execution_id)
        if execution:
            self.jobs.state.change(
                execution.job_id, Status.PROCESSING, of=[Status.PROCESSING], cancel_requested=1
            )

    def execute_job(self, job: Job, queue: Queue) -> None:
        """Run a job and all that can be claimed meanwhile; return when nothing runs any more. Never raises."""
        self._state = WorkerStatus.BUSY  # from here on a SIGTERM lets what is claimed end
        self._closed = False
        self._swap_if_idle()
        self._try(lambda: self._take([job]))
        while self._held:
            self._every("duty", DUTY_S, self._do_duties)
            if self._has_room():
                self._every("claim", LOOP_S, lambda: self._claim(queue))
            self._every("watch", WATCH_S, self._watch)
            self._settle_ended()
        while not self._try(lambda: self.set_state(WorkerStatus.IDLE)):
            self._settle_ended()  # waits: RQ's loop must not meet a Redis that does not answer

    # ---------------------------------------------------------------------------------------------- hot swap

    def swap_when_idle(self, swap: Callable[[], None]) -> None:
        """Have `swap` called between two jobs, after what runs has ended. For any thread."""
        self._swap = swap

    def _swap_if_idle(self) -> None:
        if self._swap and not self._held:
            swap, self._swap = self._swap, None
            swap()

    # ------------------------------------------------------------------------------------------------ claiming

    @property
    def jobs_at_hand(self) -> int:
        return len(self._held)

    @property
    def step_age_s(self) -> float:
        """Seconds since the last step, or since a job was claimed after it; 0 with no job at hand."""
        claims = [held.claimed_at for held in list(self._held.values())]
        return now() - max(self.engine.stepped_at, min(claims)) if claims else 0.0

    def _has_room(self) -> bool:
        if self._closed or self._suspended or self._stop_requested or self._swap:
            return False
        return self._load() < AHEAD * self.engine.limit or all(ticket.steps_done for ticket in self._held)

    def _load(self) -> int:
        return sum(ticket.load for ticket in self._held)

    def _claim(self, queue: Queue) -> None:
        """Take some jobs off the queue, as RQ does it: each is on its list of taken ones until it has a lease."""
        room = AHEAD * self.engine.limit - self._load()
        typical = sum(ticket.full_load for ticket in self._held) / len(self._held)
        with self.connection.pipeline(transaction=False) as pipeline:
            for _ in range(min(MAX_CLAIMED, max(1, int(room / typical)))):
                pipeline.lmove(queue.key, queue.intermediate_queue_key, "LEFT", "RIGHT")
            ids = [job_id.decode() for job_id in pipeline.execute() if job_id]
            for job_id in ids:
                pipeline.hgetall(self.job_class.key_for(job_id))
            records = pipeline.execute()
        jobs = []
        for job_id, record in zip(ids, records, strict=True):
            job = self.job_class(job_id, connection=self.connection, serializer=self.serializer)
            try:
                job.restore(record)
            except NoSuchJobError:
                self.connection.lrem(queue.intermediate_queue_key, 1, job_id)
            else:
                jobs.append(job)
        if jobs:
            self._take(jobs)

    def _take(self, jobs: list[Job]) -> None:
        """Claim jobs that were taken off the queue. One that must run alone closes the worker for others."""
        chosen: list[tuple[Job, JobPayload]] = []
        for n, (job, standing) in enumerate(
            zip(jobs, self.jobs.state.standings([job.id for job in jobs]), strict=True)
        ):
            solo = standing is not None and standing.solo
            if self._closed or (solo and (self._held or chosen)):
                self._closed = True
                self.recovery.put_back([job.id for job in jobs[n:]])
                break
            payload = self._read(job, standing)
            if payload is None:
                self._drop(job)
                continue
            chosen.append((job, payload))
            self._closed = solo
        if chosen:
            self._begin(chosen)

    def _read(self, job: Job, standing: Standing | None) -> JobPayload | None:
        try:
            args: Any = job.args
        except Exception:
            args = None
        return self.jobs.read(job.id, args, standing)

    def _drop(self, job: Job) -> None:
        """Forget a job whose generation has ended."""
        with self.connection.pipeline() as pipeline:
            pipeline.lrem(self.queues[0].intermediate_queue_key, 1, job.id)
            pipeline.delete(job.key)
            pipeline.execute()

    def _begin(self, chosen: list[tuple[Job, JobPayload]]) -> None:
        """Lease jobs and start them: all in one transaction, for each costs Redis a write to disk."""
        queue = self.queues[0]
        alone = [held for held in self._held.values() if not held.company]
        company = len(self._held) + len(chosen) > 1
        executions = []
        with self.connection.pipeline() as pipeline:
            self.set_state(WorkerStatus.BUSY, pipeline)
            for held in alone:
                self.jobs.state.joined(held.job.id, pipeline)
            for job, _ in chosen:
                job.origin = queue.name
                executions.append(Execution.create(job, self.lease_s, pipeline, worker_name=self.name))
                job.prepare_for_execution(self.name, pipeline)
                pipeline.persist(job.key)
                pipeline.lrem(queue.intermediate_queue_key, 1, job.id)
                self.jobs.state.start(job.id, company=company, pipeline=pipeline)
            pipeline.execute()
        for held in alone:
            held.company = True
        for (job, payload), execution in zip(chosen, executions, strict=True):
            ticket = self.jobs.ticket(job.id, payload)
            num_steps = payload.num_outputs * payload.num_inference_steps
            self.executions[execution.id] = execution
            if job.enqueued_at:
                JOB_SECONDS.labels("queue").observe((rq_now() - job.enqueued_at).total_seconds())
            self._held[ticket] = _Held(job, queue, execution, ticket, num_steps, company)
            self.engine.submit(ticket)

    # ---------------------------------------------------------------------------------------------- while they run

    def _do_duties(self) -> None:
        """What RQ's loop does between two jobs: under load it does not come round for hours."""
        self.heartbeat()
        if self.should_run_maintenance_tasks:
            self.run_maintenance_tasks()
        self._suspended = is_suspended(self.connection, self)

    def _watch(self) -> None:
        """Stop what nobody wants any more, and tell how far the others are."""
        running = [held for held in self._held.values() if not held.ticket.ended]
        progress = {}
        for held, standing in zip(
            running, self.jobs.state.standings([held.job.id for held in running]), strict=True
        ):
            if standing is None or standing.cancel_requested or standing.status is Status.CANCELED:
                self._stop(held, Status.CANCELED)
            elif standing.overdue:
                self._stop(held, Status.EXPIRED)
            elif held.job.timeout and now() - held.claimed_at > held.job.timeout:
                self._stop(held, Problem(code="timeout", detail="the job ran into its time limit"))
            step = held.ticket.steps_done
            if step > held.told_step and now() - held.told_at > PROGRESS_S:
                held.told_step, held.told_at = step, now()
                progress[held.job.id] = Progress(step=step, num_steps=held.num_steps)
        if progress:
            self.jobs.state.set_progress(progress)

    def _stop(self, held: _Held, reason: Status | Problem) -> None:
        if held.stopped_by is None:
            held.stopped_by, held.stopped_at = reason, now()
            self.engine.cancel(held.ticket)

    def _exit_if_stuck(self) -> None:
        if self._stop_requested and self.recovery.away_s > self.lease_s:
            logger.critical("told to end, and Redis is gone, and with it the leases of what runs here")
            os._exit(os.EX_TEMPFAIL)
        for held in list(self._held.values()):
            if held.stopped_by and not held.ticket.ended and now() - held.stopped_at > STALL_S:
                logger.critical("job %s does not stop: the process hangs, and ends", held.job.id)
                os._exit(os.EX_SOFTWARE)
        if self.engine.crashed:
            logger.critical("the sampling thread has ended, and so does the process")
            os._exit(os.EX_SOFTWARE)

    # ------------------------------------------------------------------------------------------------ settling

    def _settle_ended(self) -> None:
        """Have settled what has ended; wait a moment for the first. What Redis does not take is tried again."""
        with contextlib.suppress(queues.Empty):
            ticket = self.engine.ended.get(timeout=LOOP_S)
            while True:
                held = self._held[ticket]
                held.settling = self._settlers.submit(self._settle, held)
                ticket = self.engine.ended.get_nowait()
        for held in [held for held in self._held.values() if held.settling and held.settling.done()]:
            assert held.settling is not None
            if held.settling.result():
                del self._held[held.ticket]
            elif self._try(self.connection.ping):
                held.settling = self._settlers.submit(self._settle, held)

    def _settle(self, held: _Held) -> bool:
        """Give a job its final state, and RQ its own; False where Redis did not answer. Runs beside others: each waits for writes to disk."""
        job, execution = held.job, held.execution
        try:
            with about(job.id, job.meta):
                status = self.jobs.settle(job.id, held.ticket, held.stopped_by)
            job.ended_at = rq_now()
            settled(self.jobs.predictor.manifest.name, job, held.ticket, status, now() - held.claimed_at)
            registry = held.queue.started_job_registry
            if status is Status.SUCCEEDED:
                self.handle_job_success(job, held.queue, registry, execution)
                return True
            job.retries_left = 0
            with self._stopping:  # RQ has one place for the id of a job that was stopped
                stopped = status in (None, Status.CANCELED, Status.EXPIRED)
                self._stopped_job_id = job.id if stopped else None
                self.handle_job_failure(
                    job, held.queue, registry, exc_string=str(status), execution=execution
                )
        except RedisError as error:
            logger.warning("Redis: %s", error)
            return False
        except Exception:
            logger.exception("job %s is not settled", job.id)
        self.executions.pop(execution.id, None)
        return True

    # --------------------------------------------------------------------------------------------------- Redis

    def _try(self, act: Callable[[], object]) -> bool:
        """Return whether Redis answered; for a moment after it did not, it is not asked. Other errors are logged: one job's do not end the others."""
        if now() < self._due["redis"]:
            return False
        try:
            act()
        except RedisError as error:
            logger.warning("Redis: %s", error)
            self._due["redis"] = now() + REDIS_PAUSE_S
            return False
        except StopRequested:
            raise
        except Exception:
            logger.exception("a job could not be handled")
        return True

    def _every(self, name: str, interval_s: float, act: Callable[[], None]) -> None:
        if now() >= self._due.get(name, 0.0):
            self._try(act)
            self._due[name] = now() + interval_s
