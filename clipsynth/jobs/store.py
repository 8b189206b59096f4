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

from clipsynth.admission.limits import Admission, Reservation, ScriptPipeline
from clipsynth.admission.scripts import ADMIT, READ_LOAD
from clipsynth.errors import AlreadyEnded
from clipsynth.jobs.model_registry import ModelRegistry
from clipsynth.jobs.queue import JobPusher, take_turn
from clipsynth.jobs.record import LONG_INPUT, RecordReader, shortened
from clipsynth.jobs.removal import UNCREATED_S, RecordRemover
from clipsynth.jobs.scripts import NOTE_UNDERSTOOD, RECORD_BYTES, TAKE_TURN, TRANSITION
from clipsynth.redis_keys import (
    DEADLINES,
    ENDED,
    EVENTS,
    EXPIRY,
    KEPT,
    OWNER_INDEX,
    PROGRESS,
    RECORD,
    RESERVATIONS,
    UNFINISHED,
)
from clipsynth.schemas.generation import TERMINAL, Generation, JobPayload, Problem, Progress, Status, Webhook
from clipsynth.schemas.understanding import RequestWarning, Understanding
from clipsynth.security.api_keys import ANONYMOUS
from clipsynth.settings import Settings

PROGRESS_TTL_S = 60
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


class JobStore(RecordReader, RecordRemover, ModelRegistry):
    """Creates, changes, reads and removes generations.

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
        self._jobs = JobPusher(redis, timeout_s=job_timeout_s)

    @classmethod
    def from_settings(cls, redis: Redis, settings: Settings) -> JobStore:
        return cls(
            redis,
            result_ttl_s=settings.result_ttl_s,
            tombstone_ttl_s=settings.tombstone_ttl_s,
            job_timeout_s=settings.job_timeout_s,
            queue_timeout_s=settings.queue_timeout_s,
        )

    def pipeline(self, redis: Redis | None = None) -> ScriptPipeline:
        """Return a pipeline that Redis carries out in one step."""
        return ScriptPipeline(redis or self.redis, ADMIT, READ_LOAD, TAKE_TURN, TRANSITION)

    # ---------------------------------------------------------------------------------------------- creation

    def expect_files(self, generation_id: str) -> None:
        """Have the files of a generation removed if it is not created."""
        self.redis.zadd(EXPIRY, {generation_id: time.time() + UNCREATED_S})

    def submit(
        self,
        generation_id: str,
        payload: JobPayload,
        reservation: Reservation | None = None,
        *,
        admission: Admission | None = None,
        webhook: Webhook | None = None,
        metadata: Mapping[str, str] | None = None,
        ttl_s: int | None = None,
        understanding: Understanding | None = None,
        sent_as: Mapping[str, str] | None = None,
    ) -> Generation | None:
        """Create a generation and push its job, of the same id, in one step; return the resource.

        Args:
            reservation: its place, with owner and work; the record takes it over. Without one, the generation
                is anonymous and counts in no limit.
            admission: reserves the place in the same step; None is returned if the id or the idempotency key
                has one, and it raises as `Admission.read`.
            understanding: how the model understands the payload, if a worker has said it.
            sent_as: names of the payload's fields in the client's request, as of `Understanding.renamed`.
            ttl_s: seconds for which it is kept after its end, if less than `result_ttl_s`.
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
            "model": payload.model,
        }
        if reservation:
            fields["work"] = f"{work:.6f}"
            # The duration of a request without work says nothing about estimates.
            if eta_s is not None and work > 0:
                fields["eta_s"] = eta_s
        if payload.deadline_s is not None:
            fields["deadline_at"] = now + payload.deadline_s
        if ttl_s is not None:
            fields["ttl_s"] = ttl_s
        if understanding is not None:
            fields["understood"] = understanding.model_dump_json()
        if sent_as:
            fields["sent_as"] = json.dumps(sent_as)
        if metadata:
            fields["metadata"] = json.dumps(metadata)
        if webhook is not None:
            fields |= {"webhook_url": webhook.url, "webhook_events": ",".join(webhook.events)}
        if reservation and reservation.claim:
            fields["claim"] = reservation.claim.key.rpartition(":")[2]
        # RQ's job has the payload too. The end of the generation counts its record again.
        size = RECORD_BYTES + sum(len(str(value).encode()) for value in (*fields.values(), fields["input"]))
        fields["kept"] = size
        with self.pipeline() as pipeline:
            if admission:
                admission.queue(pipeline)
            queue = self._jobs.push(pipeline, generation_id, payload)
            if reservation and not admission:
                pipeline.zrem(RESERVATIONS, reservation.member)
                if reservation.claim:
                    pipeline.set(*reservation.claim, ex=self.result_ttl_s)
            if payload.deadline_s is not None:
                pipeline.zadd(DEADLINES, {generation_id: now + payload.deadline_s})
            pipeline.zadd(OWNER_INDEX + owner, {generation_id: now})
            pipeline.hincrby(KEPT, owner, size)
            pipeline.hset(RECORD + generation_id, mapping=cast(Any, fields))
            pipeline.hset(UNFINISHED, generation_id, payload.model)
            pipeline.zrem(EXPIRY, generation_id)
            take_turn(pipeline, queue, generation_id, owner=owner, work=work)
            results = pipeline.execute()
        if admission and reservation:
            if not admission.read(results):
                return None
            eta_s = reservation.eta_s
        generation = Generation(
            id=generation_id,
            status=Status.QUEUED,
            created_at=now,
            model=payload.model,
            input=payload,
            seed=payload.seed,
            queue_position=results[-1],
            eta_s=eta_s,
            webhook=webhook,
            metadata=dict(metadata or {}),
        )
        if payload.precision is not None:
            generation.warnings = [RequestWarning.of_precision(payload.precision)]
        if understanding is not None:
            generation.explain(understanding.renamed(sent_as or {}))
        return generation

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

    def note_understood(self, generation_id: str, found: Understanding) -> None:
        """Note how the model understands a generation, unless this is known or it was removed."""
        keys = [RECORD + generation_id, EVENTS + generation_id]
        self.redis.eval(NOTE_UNDERSTOOD, len(keys), *keys, "understood", found.model_dump_json())

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
        self._jobs.push(pipeline, generation_id, payload, at_front=True)
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
            if self.end_queued(generation_id, Status.CANCELED):
                return Status.CANCELED
            if self.transition(generation_id, Status.PROCESSING, of=[Status.PROCESSING], cancel_requested=1):
                return Status.PROCESSING
            status = self.get(generation_id, owner=owner).status
        raise AlreadyEnded(f"the generation has ended: {status}")

    def end_queued(self, generation_id: str, status: Status, **fields: object) -> bool:
        """Give a queued generation a final status; return as `transition`.

        It took no time of a worker, so a client can make many: its record keeps only the beginning of texts.
        """
        stored = cast(bytes | None, self.redis.hget(RECORD + generation_id, "input")) or b""
        if len(stored) > LONG_INPUT:
            fields["input"] = json.dumps(shortened(json.loads(stored)), ensure_ascii=False)
        return self.transition(generation_id, status, of=[Status.QUEUED], **fields)

    def set_progress(self, progress: Mapping[str, Progress]) -> None:
        """Store and publish the progress of each generation."""
        with self.redis.pipeline(transaction=False) as pipeline:
            for generation_id, value in progress.items():
                key = PROGRESS + generation_id
                pipeline.set(key, value.model_dump_json(), ex=PROGRESS_TTL_S)
                pipeline.publish(EVENTS + generation_id, "progress")
            pipeline.execute()
