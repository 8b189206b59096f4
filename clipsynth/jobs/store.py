"""State of generations in Redis: creation, transitions of the status, removal.

A status changes by compare-and-set. A final status never changes, and a generation whose cancel was accepted
ends canceled.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from redis import Redis
from redis.client import Pipeline

from clipsynth.admission.limits import Reservation
from clipsynth.errors import AlreadyEnded
from clipsynth.jobs.model_registry import ModelRegistry
from clipsynth.jobs.queue import push_job, take_turn
from clipsynth.jobs.record import RecordReader
from clipsynth.jobs.scripts import RELEASE_UNFINISHED, TRANSITION
from clipsynth.redis_keys import (
    DEADLINES,
    ENDED,
    EVENTS,
    EXPIRY,
    GONE,
    OWNER_INDEX,
    PROGRESS,
    RECORD,
    RESERVATIONS,
    UNFINISHED,
)
from clipsynth.schemas.generation import TERMINAL, Generation, JobPayload, Problem, Progress, Status, Webhook
from clipsynth.security.api_keys import ANONYMOUS
from clipsynth.settings import Settings

PROGRESS_TTL_S = 60
# Files of a generation that is not created within this time are removed.
RESERVATION_S = 3600
NOT_ENDED = tuple(s for s in Status if s not in TERMINAL)


@dataclass(frozen=True)
class End:
    """A final status and further fields of its record."""

    generation_id: str
    status: Status
    fields: Mapping[str, object] = field(default_factory=dict)


def new_id() -> str:
    """Return a new generation id."""
    return f"gen_{secrets.token_hex(13)}"


class JobStore(RecordReader, ModelRegistry):
    """Creates, changes and reads generations.

    A method `queue_…` adds commands to a pipeline; their result is known when the pipeline is executed.
    """

    def __init__(
        self,
        redis: Redis,
        *,
        result_ttl_s: int,
        tombstone_ttl_s: int = 604_800,
        job_timeout_s: int = 600,
        queue_timeout_s: float = 3600,
    ) -> None:
        self.redis, self.result_ttl_s, self.tombstone_ttl_s = redis, result_ttl_s, tombstone_ttl_s
        self.job_timeout_s, self.queue_timeout_s = job_timeout_s, queue_timeout_s
        self._transition = redis.register_script(TRANSITION)
        self._release = redis.register_script(RELEASE_UNFINISHED)

    @classmethod
    def from_settings(cls, redis: Redis, settings: Settings) -> JobStore:
        return cls(
            redis,
            result_ttl_s=settings.result_ttl_s,
            tombstone_ttl_s=settings.tombstone_ttl_s,
            job_timeout_s=settings.job_timeout_s,
            queue_timeout_s=settings.queue_timeout_s,
        )

    # ---------------------------------------------------------------------------------------------- creation

    def expect_files(self, generation_id: str) -> None:
        """Have the files of a generation removed if it is not created."""
        self.redis.zadd(EXPIRY, {generation_id: time.time() + RESERVATION_S})

    def submit(
        self,
        generation_id: str,
        payload: JobPayload,
        reservation: Reservation | None = None,
        *,
        webhook: Webhook | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Generation:
        """Create a generation and push its job, of the same id, in one transaction; return the resource.

        Args:
            reservation: its place, with owner and work; the record takes it over. Without one, the generation
                is anonymous and counts in no limit.
        """
        now = time.time()
        owner = reservation.owner if reservation else ANONYMOUS.id
        work = reservation.work if reservation else payload.work(None)
        eta_s = reservation.eta_s if reservation else None
        fields: dict[str, object] = {
            "status": Status.QUEUED,
            "owner": owner,
            "created_at": now,
            "input": payload.model_dump_json(),
        }
        if reservation:
            fields |= {"model": payload.model, "work": f"{work:.6f}"}
            # The duration of a request without work says nothing about estimates.
            if eta_s is not None and work > 0:
                fields["eta_s"] = eta_s
        if payload.deadline_s is not None:
            fields["deadline_at"] = now + payload.deadline_s
        if metadata:
            fields["metadata"] = json.dumps(metadata)
        if webhook is not None:
            fields |= {"webhook_url": webhook.url, "webhook_events": ",".join(webhook.events)}
        with self.redis.pipeline() as pipeline:
            queue = push_job(self.redis, pipeline, generation_id, payload, timeout_s=self.job_timeout_s)
            if reservation:
                pipeline.zrem(RESERVATIONS, reservation.member)
                if reservation.claim:
                    pipeline.set(*reservation.claim, ex=self.result_ttl_s)
            if payload.deadline_s is not None:
                pipeline.zadd(DEADLINES, {generation_id: now + payload.deadline_s})
            pipeline.zadd(OWNER_INDEX + owner, {generation_id: now})
            pipeline.hset(RECORD + generation_id, mapping=cast(Any, fields))
            pipeline.hset(UNFINISHED, generation_id, payload.model)
            pipeline.zrem(EXPIRY, generation_id)
            take_turn(pipeline, queue, generation_id, owner=owner, work=work)
            position = pipeline.execute()[-1]
        return Generation(
            id=generation_id,
            status=Status.QUEUED,
            created_at=now,
            model=payload.model,
            input=payload,
            seed=payload.seed,
            queue_position=position,
            eta_s=eta_s,
            webhook=webhook,
            metadata=dict(metadata or {}),
        )

    # ------------------------------------------------------------------------------------------- transitions

    def transition(
        self, generation_id: str, status: Status, *, of: Collection[Status] = NOT_ENDED, **fields: object
    ) -> bool:
        """Change the status if the present one is in `of`; return whether it changed.

        If a cancel was accepted before an end, the generation ends canceled and the result is False.
        """
        return self._change(generation_id, status, fields, of=of) >= 0

    def queue_transition(
        self,
        pipeline: Pipeline,
        generation_id: str,
        status: Status,
        fields: Mapping[str, object],
        *,
        of: Collection[Status] = NOT_ENDED,
        add_lost: int = 0,
    ) -> None:
        """Queue a transition; `was_made` reads its result."""
        keys, values = self._arguments(generation_id, status, fields, of, add_lost)
        # EVAL: before a registered script in a pipeline, redis-py asks Redis whether it knows the script.
        pipeline.eval(TRANSITION, len(keys), *keys, *values)

    @staticmethod
    def was_made(result: Any) -> bool:
        """Return whether a queued transition was made, from its result in the pipeline."""
        return int(result) >= 0

    def _change(
        self,
        generation_id: str,
        status: Status,
        fields: Mapping[str, object],
        *,
        of: Collection[Status] = NOT_ENDED,
        add_lost: int = 0,
    ) -> int:
        """Return `lost` if the transition was made, else -1."""
        keys, values = self._arguments(generation_id, status, fields, of, add_lost)
        return int(self._transition(keys=keys, args=values))

    def _arguments(
        self,
        generation_id: str,
        status: Status,
        fields: Mapping[str, object],
        of: Collection[Status],
        lost: int,
    ) -> tuple[list[str], list[Any]]:
        """Return KEYS and ARGV of the script TRANSITION."""
        now = time.time()
        fields = {**fields, "changed_at": now}
        expires_at: float | str = ""
        if status in TERMINAL:
            expires_at = now + self.result_ttl_s
            fields |= {"finished_at": now, "expires_at": expires_at}
        values: list[Any] = [status, ",".join(of), expires_at, lost, generation_id]
        for name, value in fields.items():
            values += [name, value if isinstance(value, str | int | float) else json.dumps(value)]
        return [RECORD + generation_id, EXPIRY, EVENTS + generation_id, ENDED], values

    def start(self, generation_id: str, *, batched_with_others: bool) -> bool:
        """Change the status to processing; False if the generation has ended or was removed."""
        company = int(batched_with_others)
        return self.transition(generation_id, Status.PROCESSING, started_at=time.time(), company=company)

    def queue_start(self, pipeline: Pipeline, generation_id: str, *, batched_with_others: bool) -> None:
        """Queue the change to processing. `batched_with_others`: its worker also runs other jobs."""
        fields = {"started_at": time.time(), "company": int(batched_with_others)}
        self.queue_transition(pipeline, generation_id, Status.PROCESSING, fields)

    def queue_joined(self, pipeline: Pipeline, generation_id: str) -> None:
        """Queue the note that its worker now also runs other jobs."""
        self.queue_transition(
            pipeline, generation_id, Status.PROCESSING, {"company": 1}, of=[Status.PROCESSING]
        )

    def queue_end(self, pipeline: Pipeline, end: End) -> None:
        """Queue a final status."""
        self.queue_transition(pipeline, end.generation_id, end.status, end.fields)

    def abandon(self, generation_id: str) -> int:
        """Change a generation whose worker was lost back to queued, to run alone next time.

        Returns:
            How often its worker was lost while it ran only this job. Losses in a batch do not count, because
            another job may have caused them.
        """
        batched_with_others = self.redis.hget(RECORD + generation_id, "company") == b"1"
        add_lost = 0 if batched_with_others else 1
        return self._change(
            generation_id, Status.QUEUED, {"solo": 1}, of=[Status.PROCESSING], add_lost=add_lost
        )

    def queue_orphan(self, pipeline: Pipeline, generation_id: str, payload: JobPayload) -> None:
        """Queue the commands that requeue a job that is in no queue, at the front.

        Counts as one failed attempt, so a job that disappears again and again ends as `worker_lost`. The
        pipeline must be in its MULTI.
        """
        push_job(self.redis, pipeline, generation_id, payload, timeout_s=self.job_timeout_s, at_front=True)
        self.queue_transition(pipeline, generation_id, Status.QUEUED, {"solo": 1}, add_lost=1)

    def fail(self, generation_id: str, problem: Problem) -> bool:
        """End a generation as failed; return as `transition`."""
        return self.transition(generation_id, Status.FAILED, error=problem.model_dump_json())

    def cancel(self, generation_id: str, *, owner: str | None = None) -> Status:
        """Cancel a queued generation, or request that the worker cancels it; return the new status.

        Raises:
            NotFound, Gone: as `get`. AlreadyEnded: it has a final status.
        """
        status = self.get(generation_id, owner=owner).status
        while status not in TERMINAL:
            if self.transition(generation_id, Status.CANCELED, of=[Status.QUEUED]):
                return Status.CANCELED
            if self.transition(generation_id, Status.PROCESSING, of=[Status.PROCESSING], cancel_requested=1):
                return Status.PROCESSING
            status = self.get(generation_id).status
        raise AlreadyEnded(f"the generation has ended: {status}")

    def set_progress(self, progress: Mapping[str, Progress]) -> None:
        """Store and publish the progress of each generation."""
        with self.redis.pipeline(transaction=False) as pipeline:
            for generation_id, value in progress.items():
                key = PROGRESS + generation_id
                pipeline.set(key, value.model_dump_json(), ex=PROGRESS_TTL_S)
                pipeline.publish(EVENTS + generation_id, "progress")
            pipeline.execute()

    # ----------------------------------------------------------------------------------------------- removal

    def expired(self, *, limit: int = 100) -> list[str]:
        """Return the ids of generations that must be removed, the oldest first."""
        ids = self.redis.zrangebyscore(EXPIRY, 0, time.time(), start=0, num=limit)
        return [i.decode() for i in cast(list[bytes], ids)]

    def postpone(self, generation_id: str, seconds: float) -> None:
        """Have `expired` return a generation again later, because its files could not be removed."""
        self.redis.zadd(EXPIRY, {generation_id: time.time() + seconds}, xx=True)

    def overdue(self) -> list[str]:
        """Return the ids of generations whose deadline has passed, until `drop_deadline` removes them."""
        ids = self.redis.zrange(DEADLINES, "-inf", repr(time.time()), byscore=True)
        return [i.decode() for i in cast(list[bytes], ids)]

    def drop_deadline(self, generation_id: str) -> None:
        self.redis.zrem(DEADLINES, generation_id)

    def forget(self, generation_id: str) -> None:
        """Replace the record with a tombstone. Call `files_removed` when the files are removed."""
        owner = cast(bytes | None, self.redis.hget(RECORD + generation_id, "owner"))
        with self.redis.pipeline() as pipeline:
            self._release(keys=[RECORD + generation_id], client=pipeline)
            pipeline.delete(RECORD + generation_id, PROGRESS + generation_id)
            pipeline.hdel(UNFINISHED, generation_id)
            if owner is not None:
                pipeline.zrem(OWNER_INDEX + owner.decode(), generation_id)
                pipeline.set(GONE + generation_id, owner, ex=self.tombstone_ttl_s)
            pipeline.zadd(EXPIRY, {generation_id: time.time() + RESERVATION_S}, nx=True)
            pipeline.publish(EVENTS + generation_id, "gone")
            pipeline.execute()

    def files_removed(self, generation_id: str) -> None:
        self.redis.zrem(EXPIRY, generation_id)
