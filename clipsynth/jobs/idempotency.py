"""Idempotency keys: the same key and request again give the same generation."""

from __future__ import annotations

import hashlib
from typing import cast

from redis import Redis

from clipsynth.errors import IdempotencyMismatch


def claim(redis: Redis, *, owner: str, key: str, fingerprint: str, generation_id: str, ttl_s: int) -> str:
    """Bind an owner's idempotency key to `generation_id` unless it is bound; return the id that it is bound to.

    Raises:
        IdempotencyMismatch: it is bound to another request.
    """
    name = f"clipsynth:idempotency:{owner}:{hashlib.sha256(key.encode()).hexdigest()}"
    value = f"{fingerprint} {generation_id}"
    with redis.pipeline() as pipeline:  # Redis 7 has both in one command; the embedded one is older
        pipeline.set(name, value, nx=True, ex=ttl_s)
        pipeline.get(name)
        bound = cast(bytes | None, pipeline.execute()[1])
    known_fingerprint, known_id = (bound.decode() if bound else value).split()
    if known_fingerprint != fingerprint:
        raise IdempotencyMismatch("this Idempotency-Key came with another request before")
    return known_id
