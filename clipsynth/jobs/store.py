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
from clipsynth.admission.limits import Reservation
from clipsynth.errors import AlreadyEnded, Gone, NotFound
from clipsynth.jobs.model_registry import ModelRegistry
from clipsynth.jobs.record import STATUS_FIELDS, JobStatusView, read_resource, record_key, resource, results
from clipsynth.jobs.scripts import RELEASE_UNFINISHED, TRANSITION, UNFINISHED_KEY, UNWANTED
from clipsynth.schemas.generation import TERMINAL, Generation, JobPayload, Problem, Progress, Status
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


def new_id() -> str:
    """Return a fresh generation id."""
    return f"gen_{secrets.token_hex(13)}"


class JobStore(ModelRegistry):
    """Reads and changes the public state over one Redis connection pool."""

    def __init__(self, redis: Redis, *, result_ttl_s: int, tombstone_ttl_s: int = 604_800) -> None:
        self.redis, self.result_ttl_s, self.tombstone_ttl_s = redis, result_ttl_s, tombstone_ttl_s
        self._transition = redis.register_script(TRANSITION)
        self._release = redis.register_script(RELEASE_UNFINISHED)
        self._unwanted = redis.register_script(UNWANTED)

    @classmethod
    def from_settings(cls, redis: Redis, settings: Settings) -> JobStore:
        return cls(redis, result_ttl_s=settings.result_ttl_s, tombstone_ttl_s=settings.tombstone_ttl_s)

    def reserve(self, generation_id: str) -> None:
        """Have the files of a generation removed that is never created."""
        self.redis.zadd(EXPIRY_KEY, {generation_id: time.time() + RESERVATION_S})

    def create(
        self,
        generation_id: str,
        payload: JobPayload,
        pipeline: Pipeline,
        *,
        owner: str,
        hold: Reservation | None = None,
        notes: Mapping[str, str] | None = None,
    ) -> Generation:
        """Queue the commands that create a generation on `pipeline` and return what it will be; `notes` are fields of `record.client_notes`."""
        now = time.time()
        fields: dict[str, object] = {
            "status": Status.QUEUED,
            "owner": owner,
            "created_at": now,
            "input": payload.model_dump_json(),
            **(notes or {}),
        }
        if hold is not None:
            fields |= hold.settle(pipeline)
        if payload.deadline_s is not None:
            fields["deadline_at"] = now + payload.deadline_s
            pipeline.zadd(DEADLINES_KEY, {generation_id: now + payload.deadline_s})
        pipeline.zadd(INDEX_PREFIX + owner, {generation_id: now})
        pipeline.hset(record_key(generation_id), mapping=cast(Any, fields))
        pipeline.hset(UNFINISHED_KEY, generation_id, payload.model)
        pipeline.zrem(EXPIRY_KEY, generation_id)
        return resource(generation_id, {name: str(value) for name, value in fields.items()})

    def change(
        self, generation_id: str, status: Status, *, of: Collection[Status] = UNFINISHED, **fields: object
    ) -> bool:
        """Move to `status` if the present one is among `of`; return whether the change was made.

        An end whose cancel was accepted before it is not made: the generation ends canceled instead.
        """
        return self._change(generation_id, status, of, fields) >= 0

    def _change(
        self,
        generation_id: str,
        status: Status,
        of: Collection[Status],
        fields: dict[str, object],
        *,
        add_lost: int = 0,
        pipeline: Pipeline | None = None,
    ) -> int:
        """Return `lost` where the change was made, else -1; on a pipeline nothing is known yet, and 0 returned."""
        now = time.time()
        fields["changed_at"] = now
        expires_at: float | str = ""
        if status in TERMINAL:
            fields["finished_at"] = now
            fields["expires_at"] = expires_at = now + self.result_ttl_s
        values: list[Any] = [status, ",".join(of), expires_at, add_lost, generation_id]
        for name, value in fields.items():
            values += [name, value if isinstance(value, str | int | float) else json.dumps(value)]
        keys = [record_key(generation_id), EXPIRY_KEY, EVENTS_PREFIX + generation_id, ENDED_KEY]
        if (
            pipeline is not None
        ):  # in full: before a pipeline with a registered script redis-py asks whether Redis has it
            pipeline.eval(TRANSITION, len(keys), *keys, *values)
            return 0
        return int(self._transition(keys=keys, args=values))

    def start(
        self, generation_id: str, *, batched_with_others: bool, pipeline: Pipeline | None = None
    ) -> bool:
        """Move to processing; `company` is whether its worker runs other jobs meanwhile. False where the generation is final or gone."""
        fields: dict[str, object] = {"started_at": time.time(), "company": int(batched_with_others)}
        return self._change(generation_id, Status.PROCESSING, UNFINISHED, fields, pipeline=pipeline) >= 0

    def joined(self, generation_id: str, pipeline: Pipeline) -> None:
        """Note that its worker now runs other jobs too."""
        fields: dict[str, object] = {"company": 1}
        self._change(generation_id, Status.PROCESSING, [Status.PROCESSING], fields, pipeline=pipeline)

    def abandon(self, generation_id: str) -> int:
        """Put a generation whose worker was lost back to queued, to be run alone; return how often it was lost alone.

        What was lost in company is not counted: another job may have been the reason.
        """
        batched_with_others = self.redis.hget(record_key(generation_id), "company") == b"1"
        add_lost = 0 if batched_with_others else 1
        return self._change(generation_id, Status.QUEUED, [Status.PROCESSING], {"solo": 1}, add_lost=add_lost)

    def put_back(self, generation_id: str, pipeline: Pipeline) -> None:
        """Queue the command that puts back to queued what was lost nobody knows how; it counts as lost alone, so that it does not happen for ever."""
        self._change(generation_id, Status.QUEUED, UNFINISHED, {"solo": 1}, add_lost=1, pipeline=pipeline)

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
                pipeline.hmget(record_key(generation_id), STATUS_FIELDS)
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
        self._change(end.generation_id, end.status, UNFINISHED, dict(end.fields), pipeline=pipeline)

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
        owner = cast(bytes | None, self.redis.hget(record_key(generation_id), "owner"))
        with self.redis.pipeline() as pipeline:
            self._release(keys=[record_key(generation_id)], client=pipeline)
            pipeline.delete(record_key(generation_id), f"clipsynth:progress:{generation_id}")
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
        return bool(self.redis.exists(record_key(generation_id)))

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
                pipeline.hgetall(record_key(generation_id))
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
