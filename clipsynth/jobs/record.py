"""Reading of generations: a record as the resource for clients or as a worker's view."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from redis import Redis
from redis.client import Pipeline
from redis.exceptions import ResponseError

from clipsynth.admission.limits import ScriptPipeline, queue_place, read_place
from clipsynth.admission.scripts import READ_PLACE
from clipsynth.errors import Gone, NotFound, RecordUnreadable
from clipsynth.jobs.scripts import UNWANTED
from clipsynth.redis_keys import ENDED, GONE, OWNER_INDEX, PROGRESS, RECORD, TOMBSTONES, UNFINISHED
from clipsynth.schemas.generation import (
    Delivery,
    Generation,
    JobPayload,
    Output,
    Problem,
    Progress,
    Status,
    Webhook,
)
from clipsynth.schemas.understanding import RequestWarning, Understanding
from clipsynth.security.api_keys import ANONYMOUS

logger = logging.getLogger(__name__)
# Bytes of a payload from which on `JobStore.end_queued` shortens it.
LONG_INPUT = 1000
# Characters of each text that it keeps; more than a key of an image has.
BEGINNING = 100
PAGE = 25
# Bytes of records from which on a page ends.
MAX_BYTES = 1_000_000
# Generations that are read for one page of a list.
MAX_SEEN = 5000
# The fields that JobStatusView.read takes. `solo` is run_alone.
STATUS_FIELDS = ("status", "cancel_requested", "solo", "lost", "deadline_at", "attempt")


def is_wrong_type(error: Exception) -> bool:
    """Return whether Redis refused a command because its key holds another type."""
    return isinstance(error, ResponseError) and "WRONGTYPE" in str(error)


def results(pipeline: Pipeline) -> list[Any]:
    """Execute a pipeline and return its results.

    A command on a key of the wrong type has the error as its result, so that other commands do not fail with
    it. Other errors are raised.
    """
    found = pipeline.execute(raise_on_error=False)
    for result in found:
        if isinstance(result, Exception) and not is_wrong_type(result):
            raise result
    return found


@dataclass(frozen=True)
class JobStatusView:
    """A generation as a worker needs it.

    Attributes:
        lost: workers lost while they ran only this job.
        attempt: the attempt that has succeeded.
    """

    status: Status
    cancel_requested: bool
    run_alone: bool
    lost: int
    deadline_at: float | None
    attempt: str | None = None

    @classmethod
    def read(cls, values: Any) -> JobStatusView | None:
        """Return the view for the values of STATUS_FIELDS; None without a readable record."""
        try:
            status, cancel_requested, run_alone, lost, deadline_at, attempt = values
            return cls(
                Status(status.decode()),
                cancel_requested is not None,
                run_alone is not None,
                int(lost or 0),
                float(deadline_at) if deadline_at else None,
                attempt.decode() if attempt else None,
            )
        except (AttributeError, TypeError, ValueError):
            return None

    @property
    def overdue(self) -> bool:
        return self.deadline_at is not None and time.time() >= self.deadline_at


def read_resource(generation_id: str, raw: dict[bytes, bytes], progress: bytes | None) -> Generation | None:
    """Return the resource of a record; None without a record."""
    if not raw:
        return None
    fields = {name.decode(): value.decode() for name, value in raw.items()}
    payload = JobPayload.known(fields["input"])
    status = Status(fields["status"])
    times = {
        name: float(fields[name]) for name in ("started_at", "finished_at", "expires_at") if name in fields
    }
    webhook = None
    if "webhook_url" in fields:
        deliveries = [v for name, v in sorted(fields.items()) if name.startswith("delivery:")]
        webhook = Webhook(
            url=fields["webhook_url"],
            events=fields["webhook_events"].split(","),
            deliveries=[Delivery.model_validate_json(v) for v in deliveries],
        )
    generation = Generation(
        id=generation_id,
        status=status,
        created_at=float(fields["created_at"]),
        **times,
        model=payload.model,
        input=payload,
        seed=payload.seed,
        progress=Progress.model_validate_json(progress) if progress and status is Status.PROCESSING else None,
        outputs=[Output.model_validate(o) for o in json.loads(fields.get("outputs", "[]"))],
        error=Problem.model_validate_json(fields["error"]) if "error" in fields else None,
        webhook=webhook,
        metadata=json.loads(fields.get("metadata", "{}")),
    )
    generation._attempt = fields.get("attempt")
    if payload.precision is not None:
        generation.warnings = [RequestWarning.of_precision(payload.precision)]
    if "understood" in fields:
        found = Understanding.model_validate_json(fields["understood"])
        generation.explain(found.renamed(json.loads(fields.get("sent_as", "{}"))))
    return generation


class RecordReader:
    """Reads generations."""

    redis: Redis

    def unfinished(self) -> dict[str, str]:
        """Return the model of each unfinished generation, by id."""
        found = cast(dict[bytes, bytes], self.redis.hgetall(UNFINISHED))
        return {generation_id.decode(): model.decode() for generation_id, model in found.items()}

    def status_views(self, ids: Sequence[str]) -> list[JobStatusView | None]:
        """Return each generation as a worker needs it; None if it was removed or cannot be read."""
        with self.redis.pipeline(transaction=False) as pipeline:
            for generation_id in ids:
                pipeline.hmget(RECORD + generation_id, STATUS_FIELDS)
            return [JobStatusView.read(values) for values in results(pipeline)]

    def created_at(self, ids: Sequence[str]) -> dict[str, float]:
        """Return when these were created, without those that were removed or cannot be read."""
        with self.redis.pipeline(transaction=False) as pipeline:
            for generation_id in ids:
                pipeline.hget(RECORD + generation_id, "created_at")
            found = dict(zip(ids, results(pipeline), strict=True))
        times: dict[str, float] = {}
        for generation_id, value in found.items():
            with contextlib.suppress(TypeError, ValueError):
                times[generation_id] = float(value)
        return times

    def unwanted(self, ids: Sequence[str]) -> set[str]:
        """Return which of these were removed or have ended, or have a requested cancel."""
        found = cast(list[bytes], self.redis.register_script(UNWANTED)(args=list(ids)))
        return {i.decode() for i in found}

    def ended(self) -> dict[str, int]:
        """Return the number of generations that have ended since Redis was set up, by status."""
        found = cast(dict[bytes, bytes], self.redis.hgetall(ENDED))
        return {status.decode(): int(count) for status, count in found.items()}

    def get(self, generation_id: str, *, owner: str | None = None) -> Generation:
        """Return the resource, of this owner if one is given.

        Raises:
            NotFound: there is no such generation.
            Gone: it was removed. Only with `owner` is this known.
            RecordUnreadable: its record is damaged.
        """
        with ScriptPipeline(self.redis, READ_PLACE) as pipeline:
            pipeline.hgetall(RECORD + generation_id)
            pipeline.get(PROGRESS + generation_id)
            queue_place(pipeline, generation_id)
            raw, progress, found = results(pipeline)
        if isinstance(raw, list):
            raw = dict(zip(raw[::2], raw[1::2], strict=True))
        generation, of, _ = _read_one(generation_id, raw, progress)
        if generation and owner in (None, of):
            if generation.status is Status.QUEUED:
                steps = generation.input.num_inference_steps
                generation.queue_position, generation.eta_s = read_place(found, steps=steps)
            return generation
        if generation is None and of and owner in (None, of):
            raise RecordUnreadable(f"the record of {generation_id!r} cannot be read")
        gone = cast(bytes | None, self.redis.get(GONE + generation_id))
        kept_until = self.redis.zscore(TOMBSTONES + owner, generation_id) if owner else None
        if (gone and owner in (None, gone.decode())) or (kept_until and kept_until > time.time()):
            raise Gone(f"the generation {generation_id!r} and its files were removed")
        raise NotFound(f"there is no generation {generation_id!r}")

    def exists(self, generation_id: str) -> bool:
        return bool(self.redis.exists(RECORD + generation_id))

    def page(
        self,
        *,
        status: Status | None,
        before: tuple[float, str] | None,
        limit: int,
        owner: str = ANONYMOUS.id,
    ) -> tuple[list[Generation], tuple[float, str] | None]:
        """Return up to `limit` generations of an owner, the newest first, and the cursor of the next page.

        Args:
            before: cursor (created_at, id); generations after it in the list are returned.

        Returns:
            The cursor is None at the end. At most `MAX_SEEN` generations are read, and about `MAX_BYTES`: for
            a rare status or of long requests, a page may be short and still have a next page.
        """
        found: list[Generation] = []
        seen_bytes = 0
        cursor, start, top = before, 0, "+inf" if before is None else repr(before[0])
        while start < MAX_SEEN:
            raw = self.redis.zrevrangebyscore(OWNER_INDEX + owner, top, "-inf", start, PAGE, withscores=True)
            entries = cast(list[tuple[bytes, float]], raw)
            start += len(entries)
            places = [(score, i.decode()) for i, score in entries]
            places = [at for at in places if before is None or at < before]
            for at, (generation, _, size) in zip(places, self._read([i for _, i in places]), strict=True):
                if generation is not None and status in (None, generation.status):
                    if len(found) == limit or seen_bytes > MAX_BYTES:
                        return found, cursor
                    found.append(generation)
                    seen_bytes += size
                cursor = at
            if len(entries) < PAGE:
                return found, None
        return found, cursor

    def _read(self, ids: list[str]) -> list[tuple[Generation | None, str | None, int]]:
        """Return each generation, or None, its owner, and the bytes of its record."""
        if not ids:
            return []
        with self.redis.pipeline(transaction=False) as pipeline:
            for generation_id in ids:
                pipeline.hgetall(RECORD + generation_id)
                pipeline.get(PROGRESS + generation_id)
            values = results(pipeline)
        return [_read_one(*row) for row in zip(ids, values[::2], values[1::2], strict=True)]


def _read_one(generation_id: str, raw: Any, progress: Any) -> tuple[Generation | None, str | None, int]:
    """Return a generation, None if it cannot be read, its owner, and the bytes of its record."""
    try:
        size = sum(map(len, raw.values()))
        return read_resource(generation_id, raw, progress), raw.get(b"owner", b"").decode(), size
    except (AttributeError, KeyError, TypeError, ValueError):
        logger.warning("the record of %s cannot be read", generation_id, exc_info=True)
        owner = raw.get(b"owner", b"").decode(errors="replace") if isinstance(raw, dict) else None
        return None, owner, 0


def shortened(value: Any) -> Any:
    """Return a JSON value with only the beginning of its long texts."""
    if isinstance(value, dict):
        return {name: shortened(item) for name, item in value.items()}
    if isinstance(value, list):
        return [shortened(item) for item in value]
    return f"{value[:BEGINNING]}…" if isinstance(value, str) and len(value) > BEGINNING else value
