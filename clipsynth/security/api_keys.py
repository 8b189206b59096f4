"""API keys in Redis. A key is `cs_<id>_<secret>`; only the sha256 of its 256 random bits is stored.

The secret that signs a key's webhooks is stored in plain text, because signing needs it.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import time
from collections.abc import Collection
from typing import Literal, cast, get_args

from pydantic import BaseModel
from redis import Redis

from clipsynth.errors import NotFound
from clipsynth.redis_keys import API_KEYS, EVENTS, KEY_CHANGES

Scope = Literal["generate", "read", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)


class ApiKey(BaseModel):
    """The caller. `generate` creates, cancels and deletes; `read` reads; `admin` allows all and /metrics."""

    id: str
    name: str
    scopes: list[Scope]
    created_at: float = 0.0
    revoked_at: float | None = None
    sha256: str = ""
    webhook_secret: str = ""
    # Absent values are the service's.
    expires_at: float | None = None
    rate_per_s: float | None = None
    max_kept_bytes: int | None = None

    @property
    def is_valid(self) -> bool:
        return self.revoked_at is None and (self.expires_at is None or time.time() < self.expires_at)

    def is_of(self, token: str) -> bool:
        """Return whether the key is valid and has this secret, compared in constant time."""
        secret = token.partition("_")[2].partition("_")[2]
        return hmac.compare_digest(_digest(secret), self.sha256) and self.is_valid


ANONYMOUS = ApiKey(id="anonymous", name="anonymous", scopes=list(SCOPES))


def create_key(
    redis: Redis,
    name: str,
    scopes: Collection[Scope],
    *,
    expires_at: float | None = None,
    rate_per_s: float | None = None,
    max_kept_bytes: int | None = None,
) -> tuple[ApiKey, str]:
    """Return the record of a new key, and the key, which cannot be read again."""
    key_id, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
    key = ApiKey(
        id=key_id,
        name=name,
        scopes=[s for s in SCOPES if s in scopes],
        created_at=time.time(),
        sha256=_digest(secret),
        webhook_secret="whsec_" + base64.b64encode(secrets.token_bytes(32)).decode(),
        expires_at=expires_at,
        rate_per_s=rate_per_s,
        max_kept_bytes=max_kept_bytes,
    )
    _write(redis, key)
    return key, f"cs_{key_id}_{secret}"


def list_keys(redis: Redis) -> list[ApiKey]:
    """Return all keys, the oldest first, with revoked ones."""
    values = cast(list[bytes], redis.hvals(API_KEYS))
    return sorted(map(ApiKey.model_validate_json, values), key=lambda key: key.created_at)


def revoke_key(redis: Redis, key_id: str) -> ApiKey:
    """Revoke a key.

    Raises:
        NotFound: no key has this id.
    """
    raw = cast(bytes | None, redis.hget(API_KEYS, key_id))
    if raw is None:
        raise NotFound(f"there is no key {key_id!r}; `clipsynth keys list` has the ids")
    key = ApiKey.model_validate_json(raw)
    key.revoked_at = key.revoked_at or time.time()
    _write(redis, key)
    return key


def is_valid(redis: Redis, key_id: str) -> bool:
    """Return whether a key exists and is neither revoked nor expired; True for requests without a key."""
    if key_id == ANONYMOUS.id:
        return True
    raw = cast(bytes | None, redis.hget(API_KEYS, key_id))
    return raw is not None and ApiKey.model_validate_json(raw).is_valid


def find_key(redis: Redis, token: str) -> ApiKey | None:
    """Return the record of a key; None for one that is not valid (any more)."""
    raw = cast(bytes | None, redis.hget(API_KEYS, id_of(token)))
    key = ApiKey.model_validate_json(raw) if raw else ANONYMOUS
    return key if key.is_of(token) else None


def id_of(token: str) -> str:
    """Return the id in a key; empty for another text."""
    return token.split("_")[1] if token.startswith("cs_") else ""


def webhook_secret(redis: Redis, key_id: str) -> str:
    """Return the secret that signs a key's webhooks; empty if it has none."""
    raw = cast(bytes | None, redis.hget(API_KEYS, key_id))
    return ApiKey.model_validate_json(raw).webhook_secret if raw else ""


def _write(redis: Redis, key: ApiKey) -> None:
    with redis.pipeline() as pipeline:
        pipeline.hset(API_KEYS, key.id, key.model_dump_json(exclude_none=True))
        pipeline.publish(EVENTS + KEY_CHANGES + key.id, "revoked" if key.revoked_at else "created")
        pipeline.execute()


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
