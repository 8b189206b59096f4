"""Route /v1/usage: what an API key holds, and what it may."""

from __future__ import annotations

import math
import time
from typing import cast

from fastapi import APIRouter
from pydantic import BaseModel, Field

from app.dependencies import Reader, ServicesDep
from app.responses.problems import problems
from clipsynth.admission.limits import rate_limit
from clipsynth.redis_keys import BUCKET, INFLIGHT, KEPT, OWNER_INDEX
from clipsynth.security.api_keys import Scope

router = APIRouter(tags=["generations"])


class Amount(BaseModel):
    """A part of a limit; `limit` is null if there is none."""

    used: int
    limit: int | None


class Requests(BaseModel):
    """Requests for generations: as many as `left` now, then `per_s`, up to `burst` at once."""

    left: int | None = Field(description="Null: no limit.")
    burst: int | None
    per_s: float | None


class Usage(BaseModel):
    """What an API key holds, over all processes, and what it may hold."""

    key: str = Field(description="Id of the key, or `anonymous`.")
    name: str
    scopes: list[Scope]
    expires_at: float | None = Field(description="Unix time.")
    requests: Requests
    unfinished: Amount
    generations: int = Field(description="Generations that are kept.")
    kept_bytes: Amount = Field(description="Bytes of their records in Redis.")
    upload_bytes: Amount
    download_bytes: Amount
    streams: Amount


@router.get("/v1/usage", response_model=Usage, responses=problems())
def usage(services: ServicesDep, caller: Reader) -> Usage:
    """Return what this API key holds and what it may hold."""
    redis, settings, budgets = services.redis, services.settings, services.budgets
    with redis.pipeline(transaction=False) as pipeline:
        pipeline.hget(INFLIGHT, caller.id)
        pipeline.zcard(OWNER_INDEX + caller.id)
        pipeline.hget(KEPT, caller.id)
        pipeline.hmget(BUCKET + caller.id, ["tokens", "at"])
        unfinished, generations, kept, bucket = pipeline.execute()
    max_kept = settings.kept_bytes_per_key if caller.max_kept_bytes is None else caller.max_kept_bytes
    return Usage(
        key=caller.id,
        name=caller.name,
        scopes=caller.scopes,
        expires_at=caller.expires_at,
        requests=_requests(*rate_limit(settings, caller.rate_per_s), *cast(list[bytes | None], bucket)),
        unfinished=Amount(used=int(unfinished or 0), limit=settings.max_inflight or None),
        generations=generations,
        kept_bytes=Amount(used=int(kept or 0), limit=max_kept or None),
        upload_bytes=Amount(used=budgets.uploads.used(caller.id), limit=budgets.uploads.per_key),
        download_bytes=Amount(used=budgets.downloads.used(caller.id), limit=budgets.downloads.per_key),
        streams=Amount(used=budgets.streams.used(caller.id), limit=budgets.streams.per_key),
    )


def _requests(rate: float, burst: float, tokens: bytes | None, at: bytes | None) -> Requests:
    if not rate:
        return Requests(left=None, burst=None, per_s=None)
    left = burst
    if tokens and at:
        left = min(burst, float(tokens) + max(0.0, time.time() - float(at)) * rate)
    return Requests(left=math.floor(left), burst=math.floor(burst), per_s=rate)
