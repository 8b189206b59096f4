"""RQ's in-process worker with many jobs at a time: claims between steps, short leases, and one known function whatever Redis says."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import time
from collections.abc import Callable
from functools import partial
from time import monotonic as now
from typing import Any

from redis.client import Pipeline
from redis.exceptions import RedisError, ResponseError
from rq import Queue, SimpleWorker
from rq.command import parse_payload
from rq.exceptions import StopRequested
from rq.executions import Execution
from rq.job import Job, JobStatus
from rq.suspension import is_suspended
from rq.utils import now as rq_now
from rq.worker.base import WorkerStatus

from clipsynth.jobs.record import JobStatusView, results
from clipsynth.schemas.generation import JobPayload, Problem, Progress, Status
from worker.engine import Engine
from worker.job_runner import JobRunner
from worker.metrics import JOB_SECONDS
from worker.rq_adapter.claim import JobClaimer
from worker.rq_adapter.finish import REDIS_PAUSE_S, ClaimedJob, Finalizer
from worker.rq_adapter.job import GenerationJob
from worker.rq_adapter.leases import LeaseKeeper

logger = logging.getLogger(__name__)
RQ_MAINTENANCE_S = 86_400  # RQ's own pass is lock-guarded for 15 minutes, too slow for a lost worker; worker/rq_adapter/leases.py does it instead
LOOP_S = 0.01  # longest wait for a job to end before the queue is looked at again
WATCH_S = 0.05
PROGRESS_S = 0.25
DUTY_S = 1.0
STALL_S = 120.0  # a job that was told to stop and did not within this time shows that the process hangs
LEAD_S = 0.2  # what ends sooner than this is replaced already, so that the next jobs are prepared when there is room


class BatchWorker(SimpleWorker):
    """Claims jobs while others run, as long as the engine has room, and settles each through RQ."""

    def __init__(
        self,
        queue: Queue,
        *,
        redis_url: str,
        lease_s: int,
        heartbeat_s: float,
        jobs: JobRunner,
        engine: Engine,
    ) -> None:
        GenerationJob.abandoned = staticmethod(jobs.abandoned)
        GenerationJob.unreadable = staticmethod(
            lambda i: jobs.refuse(i, "the record of the job cannot be read")
        )
        self.lease_s, self.jobs, self.engine = lease_s, jobs, engine
        self._closed = False  # nothing more is claimed until what runs has ended
        self._suspended = False
        self._due: dict[str, float] = {}
        self._reported_state: str | None = None
        self._swap: Callable[[], None] | None = None
        super().__init__(
            [queue],
            connection=queue.connection,
            job_class=GenerationJob,
            serializer=queue.serializer,
            worker_ttl=lease_s,
            maintenance_interval=RQ_MAINTENANCE_S,
        )
        self.taking = JobClaimer(self.queues[0], self.job_class)
        self.settler = Finalizer(engine.ended, jobs, self.connection, self._record)
        self._held = self.settler.held
        self.recovery = LeaseKeeper(
            queue,
            redis_url=redis_url,
            job_class=GenerationJob,
            lease_s=lease_s,
            heartbeat_s=heartbeat_s,
            held=lambda: [(held.job, held.execution) for held in list(self._held.values())],
            check=self._exit_if_stuck,
        )

    # ------------------------------------------------------------------------------------------- what RQ calls

    def get_heartbeat_ttl(self, job: Job, working_time: float = 0.0) -> int:
        return self.lease_s

    def heartbeat(self, timeout: int | None = None, pipeline: Pipeline | None = None) -> None:
        if pipeline is None:  # RQ's loop calls it so, around every job; it is three writes
            self._swap_if_idle()
        if now() < self._due.get("heartbeat", 0.0):
            return
        with contextlib.suppress(RedisError):  # RQ's loop would end the process
            with self.connection.pipeline() as writes:
                super().heartbeat(timeout, writes)
                writes.execute()
            self._due["heartbeat"] = now() + self.recovery.heartbeat_s

    def set_state(self, state: str, pipeline: Pipeline | None = None) -> None:
        if state == self._reported_state and pipeline is None:
            self._state = state
            return
        super().set_state(state, pipeline)
        self._reported_state = state

    def set_shutdown_requested_date(self) -> None:
        with contextlib.suppress(RedisError):  # it is called by a signal, wherever the process is
            super().set_shutdown_requested_date()

    def handle_payload(self, message: dict[str, Any]) -> None:
        """Do what RQ's commands ask; `stop-job` would know of one job at a time. Called by RQ's subscription, in a thread."""
        payload = parse_payload(message)
        if payload["command"] != "stop-job":
            super().handle_payload(message)
        elif payload.get("job_id") in {held.job.id for held in list(self._held.values())}:
            self._cancel(payload["job_id"])

    def request_stop_execution(self, execution_id: str) -> None:
        """RQ's command `stop-execution`."""
        execution = self.executions.get(execution_id)
        if execution:
            self._cancel(execution.job_id)

    def _cancel(self, generation_id: str) -> None:
        state = self.jobs.state
        state.change(generation_id, Status.PROCESSING, of=[Status.PROCESSING], cancel_requested=1)

    def execute_job(self, job: Job, queue: Queue) -> None:
        """Run a job and all that can be claimed meanwhile; return when nothing runs any more. Never raises."""
        self._state = WorkerStatus.BUSY  # from here on a SIGTERM lets what is claimed end
        self._closed = False
        self._swap_if_idle()
        self._try(lambda: self._take([(job, self.jobs.state.status_views([job.id])[0])]))
        while self._held:
            self.settler.news.clear()
            self._every("duty", DUTY_S, self._do_duties)
            if self._has_room():
                self._every("claim", LOOP_S, self._claim)
            self._every("watch", WATCH_S, self._watch)
            self.settler.news.wait(LOOP_S)
        while not self._try(lambda: self.set_state(WorkerStatus.IDLE)):
            time.sleep(LOOP_S)  # RQ's loop must not meet a Redis that does not answer

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
    def claimed_jobs(self) -> int:
        return len(self._held)

    @property
    def step_age_s(self) -> float:
        """Seconds since the last step, or since a job was claimed after it; 0 with no job at hand."""
        claims = [held.claimed_at for held in list(self._held.values())]
        return now() - max(self.engine.stepped_at, min(claims)) if claims else 0.0

    def _has_room(self) -> bool:
        closed = self._closed or self._suspended or self._stop_requested or self._swap
        return not closed and self._load() < self.engine.limit

    def _load(self) -> int:
        """Return what a step will pass through the network a moment from now, of the jobs at hand."""
        steps = math.ceil(LEAD_S / max(self.engine.step_s, 1e-3))
        return sum(ticket.load(steps) for ticket in list(self._held))

    def _claim(self) -> None:
        """Take as many jobs off the queue as are likely to fit."""
        loads = [ticket.full_load for ticket in list(self._held)]
        if not loads:
            return
        fitting = int((self.engine.limit - self._load()) * len(loads) / sum(loads))
        if jobs := self.taking.take(max(1, fitting)):
            self._take(jobs)

    def _take(self, jobs: list[tuple[Job, JobStatusView | None]]) -> None:
        """Claim jobs that were taken off the queue. One that must run alone closes the worker for others."""
        chosen: list[tuple[Job, JobPayload, float | None]] = []
        for n, (job, status_view) in enumerate(jobs):
            run_alone = status_view is not None and status_view.run_alone
            if self._closed or (run_alone and (self._held or chosen)):
                self._closed = True
                self.recovery.put_back([job.id for job, _ in jobs[n:]])
                break
            payload = self._read(job, status_view)
            if payload is None:
                self.taking.drop(job)
                continue
            chosen.append((job, payload, status_view.deadline_at if status_view else None))
            self._closed = run_alone
        if chosen:
            self._begin(chosen)

    def _read(self, job: Job, status_view: JobStatusView | None) -> JobPayload | None:
        try:
            args: Any = job.args
        except Exception:
            args = None
        return self.jobs.read(job.id, args, status_view)

    def _begin(self, chosen: list[tuple[Job, JobPayload, float | None]]) -> None:
        """Lease jobs and start them: all in one transaction, for each costs Redis a write to disk.

        A job fails of which somebody made a key something else; Redis carries out the commands of the others.
        """
        queue = self.queues[0]
        alone = [held for held in list(self._held.values()) if not held.batched_with_others]
        batched_with_others = len(self._held) + len(chosen) > 1
        executions, commands = [], []
        with self.connection.pipeline() as pipeline:
            self.set_state(WorkerStatus.BUSY, pipeline)
            for held in alone:
                self.jobs.state.joined(held.job.id, pipeline)
            for job, _, _ in chosen:
                first = len(pipeline)
                job.origin = queue.name
                executions.append(Execution.create(job, self.lease_s, pipeline, worker_name=self.name))
                job.prepare_for_execution(self.name, pipeline)
                pipeline.persist(job.key)
                pipeline.lrem(queue.intermediate_queue_key, 1, job.id)
                self.jobs.state.start(job.id, batched_with_others=batched_with_others, pipeline=pipeline)
                commands.append(slice(first, len(pipeline)))
            done = results(pipeline)
        for held in alone:
            held.batched_with_others = True
        for (job, payload, deadline_at), execution, own in zip(chosen, executions, commands, strict=True):
            if any(isinstance(result, ResponseError) for result in done[own]):
                self._try(partial(self._reject, job, execution))
                continue
            ticket = self.jobs.ticket(job.id, payload)
            num_steps = payload.num_outputs * payload.num_inference_steps
            self.executions[execution.id] = execution
            if job.enqueued_at:
                JOB_SECONDS.labels("queue").observe((rq_now() - job.enqueued_at).total_seconds())
            self._held[ticket] = ClaimedJob(
                job, execution, ticket, num_steps, batched_with_others, deadline_at
            )
            self.engine.submit(ticket)

    def _reject(self, job: Job, execution: Execution) -> None:
        """Fail a job of whose claim Redis carried out a part only."""
        logger.error("job %s cannot be claimed: a key of it is of another type", job.id)
        self.jobs.refuse(job.id, "the job cannot be claimed")
        self.taking.drop(job, execution)

    # ---------------------------------------------------------------------------------------------- while they run

    def _do_duties(self) -> None:
        """What RQ's loop does between two jobs: under load it does not come round for hours."""
        self.heartbeat()
        if self.should_run_maintenance_tasks:
            self.run_maintenance_tasks()
        self._suspended = is_suspended(self.connection, self)

    def _watch(self) -> None:
        """Stop what nobody wants any more, and tell how far the others are."""
        running = [held for held in list(self._held.values()) if not held.ticket.ended]
        unwanted = self.jobs.state.unwanted([held.job.id for held in running])
        progress = {}
        for held in running:
            if held.job.id in unwanted:
                self._stop(held, Status.CANCELED)
            elif held.deadline_at is not None and time.time() >= held.deadline_at:
                self._stop(held, Status.EXPIRED)
            elif held.job.timeout and now() - held.claimed_at > held.job.timeout:
                self._stop(held, Problem(code="timeout", detail="the job ran into its time limit"))
            step = held.ticket.steps_done
            if step > held.reported_step and now() - held.reported_at > PROGRESS_S:
                held.reported_step, held.reported_at = step, now()
                progress[held.job.id] = Progress(step=step, num_steps=held.num_steps)
        if progress:
            self.jobs.state.set_progress(progress)

    def _stop(self, held: ClaimedJob, reason: Status | Problem) -> None:
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
        if self.engine.crashed or self.settler.crashed:
            logger.critical("a thread has ended that must not, and so does the process")
            os._exit(os.EX_SOFTWARE)

    # ------------------------------------------------------------------------------------------------ settling

    def _record(self, job: Job, execution: Execution, status: Status, pipeline: Pipeline) -> None:
        """Have RQ note a job's end, as its handle_job_success and handle_job_failure do, in a transaction with others.

        RQ keeps no record of what succeeded: the public state is one. What it does besides is for dependents, repeats, retries and rate
        limits, which our jobs do not have.
        """
        job.ended_at = rq_now()
        self.increment_total_working_time(job.ended_at - execution.created_at, pipeline)
        if status is Status.SUCCEEDED:
            self.increment_successful_job_count(pipeline)
            pipeline.delete(job.key)
        else:
            self.increment_failed_job_count(pipeline)
            stopped = status in (Status.CANCELED, Status.EXPIRED)
            job.set_status(JobStatus.STOPPED if stopped else JobStatus.FAILED, pipeline)
            job._handle_failure(
                str(status),
                pipeline,
                worker_name=self.name,
                execution_id=execution.id,
                execution_started_at=execution.created_at,
                execution_ended_at=job.ended_at,
            )
        self.cleanup_execution(job, pipeline, execution)

    # --------------------------------------------------------------------------------------------------- Redis

    def _try(self, act: Callable[[], object]) -> bool:
        """Return whether Redis answered; for a moment after it did not, it is not asked. Other errors are logged: one job's do not end the others."""
        if now() < self._due.get("redis", 0.0):
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
