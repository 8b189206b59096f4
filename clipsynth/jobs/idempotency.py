"""Idempotency keys: repeating a request with the same key returns the same generation."""

from __future__ import annotations

import hashlib
from typing import cast

from redis import Redis

from clipsynth.errors import IdempotencyMismatch
from clipsynth.redis_keys import IDEMPOTENCY


def claim(redis: Redis, *, owner: str, key: str, fingerprint: str, generation_id: str, ttl_s: int) -> str:
    """Bind an owner's idempotency key to `generation_id`, unless it is bound; return the bound id.

    Raises:
        IdempotencyMismatch: the key is bound to another request.
    """
    name = f"{IDEMPOTENCY}{owner}:{hashlib.sha256(key.encode()).hexdigest()}"
    value = f"{fingerprint} {generation_id}"
    # Redis 7 can do both in one command; the embedded Redis is older.
    with redis.pipeline() as pipeline:
        pipeline.set(name, value, nx=True, ex=ttl_s)
        pipeline.get(name)
        bound = cast(bytes | None, pipeline.execute()[1])
    known_fingerprint, known_id = (bound.decode() if bound else value).split()
    if known_fingerprint != fingerprint:
        raise IdempotencyMismatch("this Idempotency-Key was used for another request")
    return known_id
