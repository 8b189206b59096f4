"""Public state of generations and models in Redis. A status changes by compare-and-set; a final one never changes again."""

from __future__ import annotations

import json
import secrets
import time
from typing import Any, cast

from redis import Redis
from redis.exceptions import RedisError

from clipsynth.errors import ModelNotFound, NotFound, NoWorker
from clipsynth.schemas import TERMINAL, Generation, JobPayload, ModelInfo, Output, Problem, Progress, Status

PROGRESS_TTL_S = 60
MODEL_TTL_S = 30
STARTING_TTL_S = 120

# KEYS[1] hash; ARGV[1] new status, ARGV[2] allowed old ones (comma-separated), ARGV[3…] further fields. 1 where the change was made.
_TRANSITION = """
local old = redis.call('HGET', KEYS[1], 'status')
if not old or not string.find(',' .. ARGV[2] .. ',', ',' .. old .. ',', 1, true) then return 0 end
redis.call('HSET', KEYS[1], 'status', ARGV[1], unpack(ARGV, 3))
return 1
"""


def new_id() -> str:
    """Return a fresh generation id."""
    return f"gen_{secrets.token_hex(13)}"


def _key(generation_id: str) -> str:
    return f"clipsynth:gen:{generation_id}"


class State:
    """Reads and changes the public state over one Redis connection pool."""

    def __init__(self, redis: Redis, *, result_ttl_s: int) -> None:
        self.redis, self.result_ttl_s = redis, result_ttl_s
        self._transition = redis.register_script(_TRANSITION)

    def create(self, generation_id: str, payload: JobPayload) -> None:
        fields = {"status": Status.QUEUED, "created_at": time.time(), "input": payload.model_dump_json()}
        self.redis.hset(_key(generation_id), mapping=cast(Any, fields))

    def forget(self, generation_id: str) -> None:
        """Remove a generation that was never acknowledged."""
        self.redis.delete(_key(generation_id))

    def change(self, generation_id: str, status: Status, **fields: object) -> bool:
        """Move to `status` unless a final one was reached; return whether the change was made."""
        allowed = ",".join(s for s in Status if s not in TERMINAL)
        extra: list[Any] = ["changed_at", time.time()]
        for name, value in fields.items():
            extra += [name, value if isinstance(value, str | int | float) else json.dumps(value)]
        changed = bool(self._transition(keys=[_key(generation_id)], args=[status, allowed, *extra]))
        if changed and status in TERMINAL:
            self.redis.expire(_key(generation_id), self.result_ttl_s)
        return changed

    def start(self, generation_id: str) -> bool:
        """Move to processing; False where the generation is final or gone."""
        return self.change(generation_id, Status.PROCESSING, started_at=time.time())

    def succeed(self, generation_id: str, outputs: list[Output]) -> bool:
        return self.change(
            generation_id,
            Status.SUCCEEDED,
            finished_at=time.time(),
            outputs=[o.model_dump() for o in outputs],
        )

    def fail(self, generation_id: str, problem: Problem) -> bool:
        return self.change(
            generation_id, Status.FAILED, finished_at=time.time(), error=problem.model_dump_json()
        )

    def set_progress(self, generation_id: str, progress: Progress) -> None:
        self.redis.set(f"clipsynth:progress:{generation_id}", progress.model_dump_json(), ex=PROGRESS_TTL_S)

    def get(self, generation_id: str) -> Generation:
        """Return the resource.

        Raises:
            NotFound: no such generation, or its time is over.
        """
        fields = {
            k.decode(): v.decode()
            for k, v in cast(dict[bytes, bytes], self.redis.hgetall(_key(generation_id))).items()
        }
        if not fields:
            raise NotFound(f"there is no generation {generation_id!r}")
        payload = JobPayload.model_validate_json(fields["input"])
        status = Status(fields["status"])
        progress = (
            cast(bytes | None, self.redis.get(f"clipsynth:progress:{generation_id}"))
            if status is Status.PROCESSING
            else None
        )
        return Generation(
            id=generation_id,
            status=status,
            created_at=float(fields["created_at"]),
            started_at=float(fields["started_at"]) if "started_at" in fields else None,
            finished_at=float(fields["finished_at"]) if "finished_at" in fields else None,
            model=payload.model,
            input=payload,
            seed=payload.seed,
            progress=Progress.model_validate_json(progress) if progress else None,
            outputs=[Output.model_validate(o) for o in json.loads(fields.get("outputs", "[]"))],
            error=Problem.model_validate_json(fields["error"]) if "error" in fields else None,
            links={"self": f"/v1/generations/{generation_id}"},
        )

    # ------------------------------------------------------------------------------------------------- models

    def announce_starting(self, name: str) -> None:
        """Say that a worker is loading the bundle in folder `name`."""
        self.redis.set(f"clipsynth:starting:{name}", "1", ex=STARTING_TTL_S)

    def announce(self, info: ModelInfo) -> None:
        """Say that a worker serves a bundle; to be repeated within MODEL_TTL_S. What it serves is remembered, its life is not."""
        self.redis.set(f"clipsynth:model:{info.name}", info.model_dump_json())
        self.redis.set(f"clipsynth:alive:{info.name}", "1", ex=MODEL_TTL_S)
        self.redis.delete("clipsynth:starting:" + info.name)

    def models(self) -> list[ModelInfo]:
        """Return every bundle that a worker has served, by name."""
        keys = sorted(self.redis.scan_iter("clipsynth:model:*"))
        return (
            [ModelInfo.model_validate_json(v) for v in cast(list[bytes | None], self.redis.mget(keys)) if v]
            if keys
            else []
        )

    def model(self, name: str | None) -> ModelInfo:
        """Return the bundle `name`, or the only one, served by a worker that lives or is starting.

        Raises:
            ModelNotFound: there is none of that name. NoWorker: no worker is live or starting.
        """
        known = {info.name: info for info in self.models()}
        starting = bool(list(self.redis.scan_iter("clipsynth:starting:*")))
        alive = {info for info in known if self.redis.exists(f"clipsynth:alive:{info}")}
        if not alive and not starting:
            raise NoWorker("no worker is running")
        name = name or next(iter(sorted(alive) or sorted(known)), None)
        if name is None:
            raise NoWorker("the first worker is still loading its model")
        if name not in known:
            raise ModelNotFound(f"there is no model {name!r}; served: {', '.join(known) or 'none'}")
        return known[name]


def redis_answers(redis: Redis) -> bool:
    """Return whether Redis answers a ping."""
    try:
        return bool(redis.ping())
    except RedisError:
        return False
