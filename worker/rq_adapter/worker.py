"""RQ's in-process worker with many jobs at a time: claims between steps, short leases."""

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
from rq.job import Job
from rq.suspension import is_suspended
from rq.utils import now as rq_now
from rq.worker.base import WorkerStatus

from clipsynth.jobs.record import JobStatusView, results
from clipsynth.schemas.generation import JobPayload, Problem, Progress, Status
from clipsynth.storage import new_attempt
from worker.engine import Engine
from worker.job_runner import JobRunner
from worker.metrics import JOB_SECONDS
from worker.rq_adapter.claim import ClaimedJob, ClaimedJobs, GenerationJob, JobClaimer
from worker.rq_adapter.finish import REDIS_PAUSE_S, Finalizer, record_end
from worker.rq_adapter.leases import LeaseKeeper

logger = logging.getLogger(__name__)
# RQ's own maintenance runs at most every 15 minutes: too slow for a lost worker. leases.py does it instead.
RQ_MAINTENANCE_S = 86_400
# Longest wait for the end of a job before the queue is checked again; of an idle worker for a job, below the
# timeout of its connection.
LOOP_S, DEQUEUE_S = 0.01, 4
WATCH_S = 0.05
PROGRESS_S = 0.25
MAINTENANCE_S = 1.0
# A canceled job that still runs after this time shows that the process hangs.
STALL_S = 120.0
# Jobs that end within this time no longer count as load, so that the next jobs are ready when these leave.
LEAD_S = 0.2


class BatchWorker(SimpleWorker):
    """Claims jobs while others run, as long as the engine has room, and finishes each through RQ."""

    def __init__(
        self,
        queue: Queue,
        *,
        redis_url: str,
        lease_s: int,
        heartbeat_s: float,
        runner: JobRunner,
        engine: Engine,
    ) -> None:
        self.lease_s, self.runner, self.engine = lease_s, runner, engine
        # Claim nothing until the running jobs have ended.
        self._closed = False
        self._suspended = False
        self._due: dict[str, float] = {}
        self._reported_state: str | None = None
        self._swap: Callable[[], None] | None = None
        super().__init__(
            [queue],
            connection=queue.connection,
            job_class=GenerationJob.bound_to(runner),
            serializer=queue.serializer,
            worker_ttl=lease_s,
            maintenance_interval=RQ_MAINTENANCE_S,
        )
        self.claimed = ClaimedJobs()
        self.claimer = JobClaimer(self.queues[0], self.job_class)
        self.finalizer = Finalizer(
            engine.ended, self.claimed, runner, self.connection, partial(record_end, self)
        )
        self.leases = LeaseKeeper(
            queue,
            redis_url=redis_url,
            job_class=self.job_class,
            lease_s=lease_s,
            heartbeat_s=heartbeat_s,
            claimed=self.claimed,
            check=self._exit_if_stuck,
        )

    # ------------------------------------------------------------------------------------- overrides of RQ

    @property
    def dequeue_timeout(self) -> int:
        return max(1, min(DEQUEUE_S, self.lease_s // 3))

    def get_heartbeat_ttl(self, job: Job, working_time: float = 0.0) -> int:
        return self.lease_s

    def heartbeat(self, timeout: int | None = None, pipeline: Pipeline | None = None) -> None:
        """Send RQ's heartbeat, at most once per `heartbeat_s`; RQ calls this around every job."""
        if pipeline is None:
            self._swap_if_idle()
        if now() < self._due.get("heartbeat", 0.0):
            return
        # An error would end RQ's loop, and the process.
        with contextlib.suppress(RedisError):
            with self.connection.pipeline() as writes:
                super().heartbeat(timeout, writes)
                writes.execute()
            self._due["heartbeat"] = now() + self.leases.heartbeat_s

    def set_state(self, state: str, pipeline: Pipeline | None = None) -> None:
        if state == self._reported_state and pipeline is None:
            self._state = state
            return
        super().set_state(state, pipeline)
        self._reported_state = state

    def set_shutdown_requested_date(self) -> None:
        # RQ calls this in a signal handler, which may interrupt any code.
        with contextlib.suppress(RedisError):
            super().set_shutdown_requested_date()

    def handle_payload(self, message: dict[str, Any]) -> None:
        """Run RQ's commands, in RQ's thread; its own `stop-job` supports one running job only."""
        payload = parse_payload(message)
        if payload["command"] != "stop-job":
            super().handle_payload(message)
        elif payload.get("job_id") in {claimed.job.id for claimed in self.claimed.snapshot()}:
            self._cancel(payload["job_id"])

    def request_stop_execution(self, execution_id: str) -> None:
        """Run RQ's command `stop-execution`."""
        execution = self.executions.get(execution_id)
        if execution:
            self._cancel(execution.job_id)

    def _cancel(self, generation_id: str) -> None:
        state = self.runner.state
        state.transition(generation_id, Status.PROCESSING, of=[Status.PROCESSING], cancel_requested=1)

    def execute_job(self, job: Job, queue: Queue) -> None:
        """Run a job, and all jobs claimed meanwhile, until none is left. Never raises."""
        # While BUSY, a SIGTERM lets the claimed jobs end.
        self._state = WorkerStatus.BUSY
        self._closed = False
        self._swap_if_idle()
        self._try(lambda: self._begin([(job, self.runner.state.status_views([job.id])[0])]))
        while self.claimed:
            self.finalizer.finished.clear()
            self._every("maintenance", MAINTENANCE_S, self._maintain)
            if self._has_room():
                self._every("claim", LOOP_S, self._claim)
            self._every("watch", WATCH_S, self._watch)
            self.finalizer.finished.wait(LOOP_S)
        # Do not return to RQ's loop while Redis is away.
        while not self._try(lambda: self.set_state(WorkerStatus.IDLE)):
            time.sleep(LOOP_S)

    # ------------------------------------------------------------------------------------------- hot swap

    def swap_when_idle(self, swap: Callable[[], None]) -> None:
        """Call `swap` once, after the running jobs have ended. For any thread."""
        self._swap = swap

    def _swap_if_idle(self) -> None:
        if self._swap and not self.claimed:
            swap, self._swap = self._swap, None
            swap()

    # ------------------------------------------------------------------------------------------- claiming

    @property
    def is_stopping(self) -> bool:
        """Whether the worker was asked to stop: it claims no more jobs."""
        return bool(self._stop_requested)

    @property
    def step_age_s(self) -> float:
        """Seconds since the last step, or since the oldest claim if it is later; 0 without jobs."""
        claims = [claimed.claimed_at for claimed in self.claimed.snapshot()]
        return now() - max(self.engine.stepped_at, min(claims)) if claims else 0.0

    def _has_room(self) -> bool:
        closed = self._closed or self._suspended or self._stop_requested or self._swap
        return not closed and self._load() < self.engine.limit

    def _load(self) -> int:
        """Return the tokens that a step will process `LEAD_S` from now."""
        steps = math.ceil(LEAD_S / max(self.engine.step_s, 1e-3))
        return sum(claimed.request.load(steps) for claimed in self.claimed.snapshot())

    def _claim(self) -> None:
        """Claim as many jobs as will probably fit, judged by the running ones."""
        loads = [claimed.request.full_load for claimed in self.claimed.snapshot()]
        if not loads:
            return
        fitting = int((self.engine.limit - self._load()) * len(loads) / sum(loads))
        if jobs := self.claimer.claim(max(1, fitting)):
            self._begin(jobs)

    def _begin(self, jobs: list[tuple[Job, JobStatusView | None]]) -> None:
        """Start claimed jobs. One that must run alone waits for the others, and later ones for it."""
        chosen: list[tuple[Job, JobPayload, JobStatusView]] = []
        for n, (job, status_view) in enumerate(jobs):
            run_alone = status_view is not None and status_view.run_alone
            if self._closed or (run_alone and (self.claimed or chosen)):
                self._closed = True
                self.leases.requeue([job.id for job, _ in jobs[n:]])
                break
            payload = self._read(job, status_view)
            if payload is None or status_view is None:
                self.claimer.drop(job)
                continue
            chosen.append((job, payload, status_view))
            self._closed = run_alone
        if chosen:
            self._start(chosen)

    def _read(self, job: Job, status_view: JobStatusView | None) -> JobPayload | None:
        try:
            args: Any = job.args
        except Exception:
            args = None
        return self.runner.read_payload(job.id, args, status_view)

    def _start(self, chosen: list[tuple[Job, JobPayload, JobStatusView]]) -> None:
        """Lease jobs and submit them to the engine.

        One transaction for all, because each costs Redis a write to disk. A job with a key of another type
        fails alone: Redis carries out the commands of the others.
        """
        queue = self.queues[0]
        alone = [claimed for claimed in self.claimed.snapshot() if not claimed.batched_with_others]
        batched_with_others = len(self.claimed) + len(chosen) > 1
        executions, commands = [], []
        with self.runner.state.pipeline(self.connection) as pipeline:
            self.set_state(WorkerStatus.BUSY, pipeline)
            for claimed in alone:
                self.runner.state.queue_joined(pipeline, claimed.job.id)
            for job, _, _ in chosen:
                first = len(pipeline)
                job.origin = queue.name
                executions.append(Execution.create(job, self.lease_s, pipeline, worker_name=self.name))
                job.prepare_for_execution(self.name, pipeline)
                pipeline.persist(job.key)
                pipeline.lrem(queue.intermediate_queue_key, 1, job.id)
                self.runner.state.queue_start(pipeline, job.id, batched_with_others=batched_with_others)
                commands.append(slice(first, len(pipeline)))
            done = results(pipeline)
        for claimed in alone:
            claimed.batched_with_others = True
        for (job, payload, status_view), execution, own in zip(chosen, executions, commands, strict=True):
            if any(isinstance(result, ResponseError) for result in done[own]):
                self._try(partial(self._fail_claim, job, execution))
                continue
            attempt = new_attempt()
            request = self.runner.request(job.id, payload, attempt)
            num_steps = payload.num_outputs * payload.num_inference_steps
            self.executions[execution.id] = execution
            if job.enqueued_at:
                JOB_SECONDS.labels("queue").observe((rq_now() - job.enqueued_at).total_seconds())
            self.claimed.add(
                ClaimedJob(job, execution, request, num_steps, batched_with_others, status_view, attempt)
            )
            self.engine.submit(request)

    def _fail_claim(self, job: Job, execution: Execution) -> None:
        """Fail a job whose claim Redis carried out in part."""
        logger.error("job %s cannot be claimed: one of its keys has another type", job.id)
        self.runner.fail(job.id, "the job cannot be claimed")
        self.claimer.drop(job, execution)

    # -------------------------------------------------------------------------------------- while jobs run

    def _maintain(self) -> None:
        """Do what RQ's loop does between two jobs, which under load it may not reach for hours."""
        self.heartbeat()
        if self.should_run_maintenance_tasks:
            self.run_maintenance_tasks()
        self._suspended = is_suspended(self.connection, self)

    def _watch(self) -> None:
        """Stop canceled, expired and overlong jobs, and publish the progress of the others."""
        running = [claimed for claimed in self.claimed.snapshot() if not claimed.request.ended]
        unwanted = self.runner.state.unwanted([claimed.job.id for claimed in running])
        progress = {}
        for claimed in running:
            if claimed.job.id in unwanted:
                self._stop(claimed, Status.CANCELED)
            elif claimed.status_view.overdue:
                self._stop(claimed, Status.EXPIRED)
            elif claimed.job.timeout and now() - claimed.claimed_at > claimed.job.timeout:
                self._stop(claimed, Problem(code="timeout", detail="the job ran into its time limit"))
            step = claimed.request.steps_done
            if step > claimed.reported_step and now() - claimed.reported_at > PROGRESS_S:
                claimed.reported_step, claimed.reported_at = step, now()
                progress[claimed.job.id] = Progress(step=step, num_steps=claimed.num_steps)
        if progress:
            self.runner.state.set_progress(progress)

    def _stop(self, claimed: ClaimedJob, reason: Status | Problem) -> None:
        if claimed.stopped_by is None:
            claimed.stopped_by, claimed.stopped_at = reason, now()
            self.engine.cancel(claimed.request)

    def _exit_if_stuck(self) -> None:
        if self._stop_requested and self.leases.away_s > self.lease_s:
            logger.critical(
                "asked to stop while Redis is away; the leases of the running jobs are over; exiting"
            )
            os._exit(os.EX_TEMPFAIL)
        for claimed in self.claimed.snapshot():
            if claimed.stopped_by and not claimed.request.ended and now() - claimed.stopped_at > STALL_S:
                logger.critical("job %s does not stop: the process hangs; exiting", claimed.job.id)
                os._exit(os.EX_SOFTWARE)
        if self.engine.crashed or self.finalizer.crashed:
            logger.critical("the sampling or the finishing thread has crashed; exiting")
            os._exit(os.EX_SOFTWARE)

    def _try(self, act: Callable[[], object]) -> bool:
        """Return whether Redis answered. After an error it is left alone for `REDIS_PAUSE_S`.

        Other errors are logged, so that one job's error does not end the others.
        """
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
