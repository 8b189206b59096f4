"""Public state of generations in Redis. A status changes by compare-and-set; a final one never changes again, and whose cancel was accepted ends canceled."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from redis import Redis
from redis.client import Pipeline
from redis.exceptions import RedisError

from clipsynth.admission.estimate import place
from clipsynth.admission.fair_queue import TAKE_TURN
from clipsynth.admission.limits import RESERVATIONS_KEY, Reservation
from clipsynth.errors import AlreadyEnded, Gone, NotFound
from clipsynth.jobs.model_registry import ModelRegistry
from clipsynth.jobs.queue import enqueue
from clipsynth.jobs.record import STATUS_FIELDS, JobStatusView, read_resource, resource, results
from clipsynth.jobs.scripts import RELEASE_UNFINISHED, TRANSITION, UNFINISHED_KEY, UNWANTED
from clipsynth.redis_keys import RECORD_PREFIX
from clipsynth.schemas.generation import TERMINAL, Generation, Problem, Progress, Status, Webhook
from clipsynth.schemas.request import JobPayload
from clipsynth.security.api_keys import ANONYMOUS
from clipsynth.settings import Settings

PROGRESS_TTL_S = 60
RESERVATION_S = 3600
UNFINISHED = tuple(s for s in Status if s not in TERMINAL)
EVENTS_PREFIX = "clipsynth:events:"  # channels: what a generation is changed to
INDEX_PREFIX = "clipsynth:gens:"  # sorted sets, one per owner: id by the time of its creation
DEADLINES_KEY = "clipsynth:deadlines"  # sorted set: id by the time from which nobody wants it any more
PAGE = 100
MAX_SEEN = 5000  # generations that one page of a list is looked for among
ENDED_KEY = "clipsynth:ended"  # hash: how many, by final status
EXPIRY_KEY = "clipsynth:expiry"  # sorted set: id by the time when its files and record go


@dataclass(frozen=True)
class End:
    """A final status, and what else its record is to say."""

    generation_id: str
    status: Status
    fields: Mapping[str, object] = field(default_factory=dict)


def _started(batched_with_others: bool) -> dict[str, object]:
    return {"started_at": time.time(), "company": int(batched_with_others)}


def new_id() -> str:
    """Return a fresh generation id."""
    return f"gen_{secrets.token_hex(13)}"


class JobStore(ModelRegistry):
    """Reads and changes the public state over one Redis connection pool."""

    def __init__(self, redis: Redis, *, result_ttl_s: int, tombstone_ttl_s: int = 604_800) -> None:
        self.redis, self.result_ttl_s, self.tombstone_ttl_s = redis, result_ttl_s, tombstone_ttl_s
        self._change = redis.register_script(TRANSITION)
        self._release = redis.register_script(RELEASE_UNFINISHED)
        self._unwanted = redis.register_script(UNWANTED)

    @classmethod
    def from_settings(cls, redis: Redis, settings: Settings) -> JobStore:
        return cls(redis, result_ttl_s=settings.result_ttl_s, tombstone_ttl_s=settings.tombstone_ttl_s)

    def reserve(self, generation_id: str) -> None:
        """Have the files of a generation removed that is never created."""
        self.redis.zadd(EXPIRY_KEY, {generation_id: time.time() + RESERVATION_S})

    def submit(
        self,
        generation_id: str,
        payload: JobPayload,
        settings: Settings,
        *,
        reservation: Reservation | None = None,
        owner: str = ANONYMOUS.id,
        webhook: Webhook | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Generation:
        """Create a generation and its job in one transaction; return the generation with its place in the queue.

        The reservation becomes part of the record.
        """
        now = time.time()
        work = reservation.work if reservation else payload.work()
        fields: dict[str, object] = {"status": Status.QUEUED, "owner": owner, "created_at": now}
        fields["input"] = payload.model_dump_json()
        if metadata:
            fields["metadata"] = json.dumps(metadata)
        if webhook is not None:
            fields |= {"webhook_url": webhook.url, "webhook_events": ",".join(webhook.events)}
        if reservation is not None:
            fields |= {"model": reservation.model, "work": f"{work:.6f}"}
            # A job without work does not show how long work takes.
            if reservation.eta_s is not None and work > 0:
                fields["eta_s"] = reservation.eta_s
        if payload.deadline_s is not None:
            fields["deadline_at"] = now + payload.deadline_s
        with self.redis.pipeline() as pipeline:
            # First, because it opens the MULTI.
            queue_key = enqueue(self.redis, generation_id, payload, settings, pipeline)
            self._create(pipeline, generation_id, payload.model, fields, reservation)
            turn = [queue_key, f"clipsynth:turns:{payload.model}"]
            # EVAL, because redis-py checks a registered script in another round trip.
            pipeline.eval(TAKE_TURN, 2, *turn, generation_id, owner, f"{work:.6f}")
            pipeline.lpos(queue_key, generation_id)
            position = pipeline.execute()[-1]
        generation = resource(generation_id, {name: str(value) for name, value in fields.items()}, payload)
        generation.queue_position, generation.eta_s = position, reservation.eta_s if reservation else None
        return generation

    @staticmethod
    def _create(
        pipeline: Pipeline,
        generation_id: str,
        model: str,
        fields: Mapping[str, object],
        reservation: Reservation | None,
    ) -> None:
        """Queue the commands that write a new record and its index entries."""
        if reservation is not None:
            pipeline.zrem(RESERVATIONS_KEY, reservation.member)
        if "deadline_at" in fields:
            pipeline.zadd(DEADLINES_KEY, {generation_id: cast(float, fields["deadline_at"])})
        pipeline.zadd(f"{INDEX_PREFIX}{fields['owner']}", {generation_id: cast(float, fields["created_at"])})
        pipeline.hset(RECORD_PREFIX + generation_id, mapping=cast(Any, fields))
        pipeline.hset(UNFINISHED_KEY, generation_id, model)
        pipeline.zrem(EXPIRY_KEY, generation_id)

    def change(
        self, generation_id: str, status: Status, *, of: Collection[Status] = UNFINISHED, **fields: object
    ) -> bool:
        """Move to `status` if the present status is in `of`; return whether the change was made.

        After an accepted cancel every end becomes `canceled`; then the result is False.
        """
        return self._transition(generation_id, status, of, fields) >= 0

    def _transition(
        self,
        generation_id: str,
        status: Status,
        of: Collection[Status],
        fields: Mapping[str, object],
        add_lost: int = 0,
    ) -> int:
        """Change the status; return `lost` if the change was made, else -1."""
        keys, values = self._arguments(generation_id, status, of, fields, add_lost)
        return int(self._change(keys=keys, args=values))

    def _queue_transition(
        self,
        pipeline: Pipeline,
        generation_id: str,
        status: Status,
        of: Collection[Status],
        fields: Mapping[str, object],
        add_lost: int = 0,
    ) -> None:
        """Queue a change of status on `pipeline`; `was_made` reads its result."""
        keys, values = self._arguments(generation_id, status, of, fields, add_lost)
        # EVAL, because redis-py checks a registered script in another round trip.
        pipeline.eval(TRANSITION, len(keys), *keys, *values)

    def _arguments(
        self,
        generation_id: str,
        status: Status,
        of: Collection[Status],
        fields: Mapping[str, object],
        lost: int,
    ) -> tuple[list[str], list[Any]]:
        """Return KEYS and ARGV of the script `TRANSITION`."""
        now = time.time()
        times: dict[str, object] = {"changed_at": now}
        expires_at: float | str = ""
        if status in TERMINAL:
            expires_at = now + self.result_ttl_s
            times |= {"finished_at": now, "expires_at": expires_at}
        values: list[Any] = [status, ",".join(of), expires_at, lost, generation_id]
        for name, value in {**fields, **times}.items():
            values += [name, value if isinstance(value, str | int | float) else json.dumps(value)]
        keys = [RECORD_PREFIX + generation_id, EXPIRY_KEY, EVENTS_PREFIX + generation_id, ENDED_KEY]
        return keys, values

    def start(self, generation_id: str, *, batched_with_others: bool) -> bool:
        """Move to processing; False if the generation is final or gone."""
        return (
            self._transition(generation_id, Status.PROCESSING, UNFINISHED, _started(batched_with_others)) >= 0
        )

    def queue_start(self, generation_id: str, pipeline: Pipeline, *, batched_with_others: bool) -> None:
        """Queue a move to processing on `pipeline`."""
        fields = _started(batched_with_others)
        self._queue_transition(pipeline, generation_id, Status.PROCESSING, UNFINISHED, fields)

    def joined(self, generation_id: str, pipeline: Pipeline) -> None:
        """Record that the generation's worker now also runs other jobs."""
        of = [Status.PROCESSING]
        self._queue_transition(pipeline, generation_id, Status.PROCESSING, of, {"company": 1})

    def abandon(self, generation_id: str) -> int:
        """Requeue a generation whose worker was lost, to run alone; return how often it was lost alone.

        A loss together with other jobs is not counted: another job may have been the reason.
        """
        batched_with_others = self.redis.hget(RECORD_PREFIX + generation_id, "company") == b"1"
        lost = 0 if batched_with_others else 1
        return self._transition(generation_id, Status.QUEUED, [Status.PROCESSING], {"solo": 1}, lost)

    def requeue(
        self, generation_id: str, payload: JobPayload, settings: Settings, pipeline: Pipeline
    ) -> None:
        """Queue the commands that requeue a job that is in no queue, at its front.

        Counts as one failed attempt, so a job that disappears again and again ends as `worker_lost`. The pipeline must
        be in its MULTI.
        """
        enqueue(self.redis, generation_id, payload, settings, pipeline, at_front=True)
        self._queue_transition(pipeline, generation_id, Status.QUEUED, UNFINISHED, {"solo": 1}, 1)

    def cancel(self, generation_id: str, *, owner: str | None = None) -> Status:
        """Cancel what is queued, ask the worker to cancel what it processes; return the status that results.

        Raises:
            NotFound, Gone: as `get`. AlreadyEnded: it has a final status.
        """
        status = self.get(generation_id, owner=owner).status
        while status not in TERMINAL:
            if self.change(generation_id, Status.CANCELED, of=[Status.QUEUED]):
                return Status.CANCELED
            if self.change(generation_id, Status.PROCESSING, of=[Status.PROCESSING], cancel_requested=1):
                return Status.PROCESSING
            status = self.get(generation_id).status
        raise AlreadyEnded(f"the generation has ended: {status}")

    def status_views(self, ids: Sequence[str]) -> list[JobStatusView | None]:
        """Return what a worker must know of each generation; None for one that was forgotten or cannot be read."""
        with self.redis.pipeline(transaction=False) as pipeline:
            for generation_id in ids:
                pipeline.hmget(RECORD_PREFIX + generation_id, STATUS_FIELDS)
            return [JobStatusView.read(values) for values in results(pipeline)]

    def unwanted(self, ids: Sequence[str]) -> set[str]:
        """Return which of these nobody waits for any more: forgotten, canceled, or about to be."""
        return {i.decode() for i in cast(list[bytes], self._unwanted(args=list(ids)))}

    def ended(self) -> dict[str, int]:
        """Return how many generations have ended since Redis was set up, by status."""
        return {
            k.decode(): int(v) for k, v in cast(dict[bytes, bytes], self.redis.hgetall(ENDED_KEY)).items()
        }

    def end(self, end: End, pipeline: Pipeline) -> None:
        """Queue a final state on `pipeline`, whose result tells `was_made` whether the change was made."""
        self._queue_transition(pipeline, end.generation_id, end.status, UNFINISHED, end.fields)

    @staticmethod
    def was_made(result: Any) -> bool:
        return int(result) >= 0

    def fail(self, generation_id: str, problem: Problem) -> bool:
        return self.change(generation_id, Status.FAILED, error=problem.model_dump_json())

    # -------------------------------------------------------------------------------------------------- the end

    def unfinished(self) -> dict[str, str]:
        """Return the model of each generation that has not ended, by id."""
        found = cast(dict[bytes, bytes], self.redis.hgetall(UNFINISHED_KEY))
        return {generation_id.decode(): model.decode() for generation_id, model in found.items()}

    def expired(self, *, limit: int = 100) -> list[str]:
        """Return the ids of generations whose time is over, the oldest first."""
        ids = self.redis.zrangebyscore(EXPIRY_KEY, 0, time.time(), start=0, num=limit)
        return [i.decode() for i in cast(list[bytes], ids)]

    def postpone(self, generation_id: str, seconds: float) -> None:
        """Have `expired` name a generation again after some time, for its files could not be removed."""
        self.redis.zadd(EXPIRY_KEY, {generation_id: time.time() + seconds}, xx=True)

    def overdue(self) -> list[str]:
        """Return the ids of generations whose deadline is over, until `settled` is told of them."""
        ids = self.redis.zrange(DEADLINES_KEY, "-inf", repr(time.time()), byscore=True)
        return [i.decode() for i in cast(list[bytes], ids)]

    def settled(self, generation_id: str) -> None:
        self.redis.zrem(DEADLINES_KEY, generation_id)

    def forget(self, generation_id: str) -> None:
        """Put a tombstone in the record's place; `forgotten` is to follow when the files are gone too."""
        owner = cast(bytes | None, self.redis.hget(RECORD_PREFIX + generation_id, "owner"))
        with self.redis.pipeline() as pipeline:
            self._release(keys=[RECORD_PREFIX + generation_id], client=pipeline)
            pipeline.delete(RECORD_PREFIX + generation_id, f"clipsynth:progress:{generation_id}")
            pipeline.hdel(UNFINISHED_KEY, generation_id)
            if owner is not None:
                pipeline.zrem(INDEX_PREFIX + owner.decode(), generation_id)
                pipeline.set(f"clipsynth:gone:{generation_id}", owner, ex=self.tombstone_ttl_s)
            pipeline.zadd(EXPIRY_KEY, {generation_id: time.time() + RESERVATION_S}, nx=True)
            pipeline.publish(EVENTS_PREFIX + generation_id, "gone")
            pipeline.execute()

    def forgotten(self, generation_id: str) -> None:
        self.redis.zrem(EXPIRY_KEY, generation_id)

    # -------------------------------------------------------------------------------------------------- reading

    def set_progress(self, progress: Mapping[str, Progress]) -> None:
        """Note how far each generation is."""
        with self.redis.pipeline(transaction=False) as pipeline:
            for generation_id, value in progress.items():
                key = f"clipsynth:progress:{generation_id}"
                pipeline.set(key, value.model_dump_json(), ex=PROGRESS_TTL_S)
                pipeline.publish(EVENTS_PREFIX + generation_id, "progress")
            pipeline.execute()

    def get(self, generation_id: str, *, owner: str | None = None) -> Generation:
        """Return the resource, or only if it is `owner`'s where one is given.

        Raises:
            NotFound: no such generation. Gone: its time is over.
        """
        generation, of = self._read([generation_id])[0]
        if generation and owner in (None, of):
            if generation.status is Status.QUEUED:
                generation.queue_position, generation.eta_s = place(
                    self.redis, generation_id, generation.input
                )
            return generation
        gone = cast(bytes | None, self.redis.get(f"clipsynth:gone:{generation_id}"))
        if gone and owner in (None, gone.decode()):
            raise Gone(f"the generation {generation_id!r} and its files were removed")
        raise NotFound(f"there is no generation {generation_id!r}")

    def exists(self, generation_id: str) -> bool:
        return bool(self.redis.exists(RECORD_PREFIX + generation_id))

    def page(
        self,
        *,
        status: Status | None,
        before: tuple[float, str] | None,
        limit: int,
        owner: str = ANONYMOUS.id,
    ) -> tuple[list[Generation], tuple[float, str] | None]:
        """Return up to `limit` generations of an owner, the newest first, from behind the place (created_at, id) on, and the place to go on from, None at the end.

        No more than `MAX_SEEN` are looked at: of a status that is rare a page may be short, or empty, and still have a next one.
        """
        found: list[Generation] = []
        place, start, top = before, 0, "+inf" if before is None else repr(before[0])
        while start < MAX_SEEN:
            entries = cast(
                list[tuple[bytes, float]],
                self.redis.zrange(
                    INDEX_PREFIX + owner,
                    top,
                    "-inf",
                    desc=True,
                    byscore=True,
                    offset=start,
                    num=PAGE,
                    withscores=True,
                ),
            )
            start += len(entries)
            places = [(score, i.decode()) for i, score in entries]
            places = [at for at in places if before is None or at < before]
            for at, (generation, _) in zip(places, self._read([i for _, i in places]), strict=True):
                if generation is not None and status in (None, generation.status):
                    if len(found) == limit:
                        return found, place
                    found.append(generation)
                place = at
            if len(entries) < PAGE:
                return found, None
        return found, place

    def _read(self, ids: list[str]) -> list[tuple[Generation | None, str | None]]:
        """Return each generation, or None, and whose it is."""
        if not ids:
            return []
        with self.redis.pipeline(transaction=False) as pipeline:
            for generation_id in ids:
                pipeline.hgetall(RECORD_PREFIX + generation_id)
                pipeline.get(f"clipsynth:progress:{generation_id}")
            values = pipeline.execute()
        return [
            (read_resource(i, values[2 * n], values[2 * n + 1]), values[2 * n].get(b"owner", b"").decode())
            for n, i in enumerate(ids)
        ]


def is_redis_up(redis: Redis) -> bool:
    """Return whether Redis answers a ping."""
    try:
        return bool(redis.ping())
    except RedisError:
        return False
