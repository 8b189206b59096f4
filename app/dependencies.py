"""What routes need: the connections of the process, and the API key of the caller."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated
from urllib.parse import urlsplit

from fastapi import Depends, Header, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer
from redis import Redis

from app.notifications import Notifications
from clipsynth.budgets import Budgets
from clipsynth.errors import ClipSynthError, Forbidden, KeysMissing, StorageUnavailable, Unauthorized
from clipsynth.jobs.store import JobStore
from clipsynth.redis_keys import API_KEYS
from clipsynth.security.api_keys import ANONYMOUS, ApiKey, Scope, find_key, id_of
from clipsynth.settings import Settings, is_loopback
from clipsynth.storage import Storage

# Seconds for which a process may use what it has read of keys.
KEYS_FRESH_S = 1.0


class KnownKeys:
    """What this process has read of API keys in the last `KEYS_FRESH_S`; most requests then ask nothing.

    A revoked key, and a service that gets its first key, are known at once by the message of the change, and
    after `KEYS_FRESH_S` if it does not arrive.
    """

    def __init__(self, redis: Redis) -> None:
        self.redis = redis
        self._keys: dict[str, tuple[float, ApiKey]] = {}
        self._none_at = -KEYS_FRESH_S

    def forget(self) -> None:
        """Forget all: a key has changed, or a message may have been missed."""
        self._keys, self._none_at = {}, -KEYS_FRESH_S

    def known(self, token: str) -> ApiKey | None:
        """Return the record of a valid key without asking Redis; None if it must be asked."""
        read_at, key = self._keys.get(id_of(token), (-KEYS_FRESH_S, ANONYMOUS))
        return key if time.monotonic() - read_at < KEYS_FRESH_S and key.is_of(token) else None

    def find(self, token: str) -> ApiKey | None:
        """Return as `find_key`."""
        keys, now = self._keys, time.monotonic()
        key = find_key(self.redis, token)
        if key is not None:
            keys[key.id] = now, key
        return key

    @property
    def had_none(self) -> bool:
        """Whether Redis had no key a moment ago."""
        return time.monotonic() - self._none_at < KEYS_FRESH_S

    def exist(self) -> bool:
        """Return whether there is a key in Redis, also a revoked one."""
        now = time.monotonic()
        found = bool(self.redis.exists(API_KEYS))
        if not found:
            self._none_at = now
        return found


@dataclass(frozen=True)
class Services:
    """Connections and budgets of the process."""

    settings: Settings
    redis: Redis
    state: JobStore
    storage: Storage
    budgets: Budgets
    events: Notifications
    keys: KnownKeys


# Async, because FastAPI runs other dependencies in a thread.
async def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


ServicesDep = Annotated[Services, Depends(_services)]
_bearer = HTTPBearer(auto_error=False, description="created by `clipsynth keys create`")
_xi_api_key = APIKeyHeader(name="xi-api-key", auto_error=False, description="header of ElevenLabs' clients")
Bearer = Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]


async def _caller(request: Request, credentials: HTTPAuthorizationCredentials | None) -> ApiKey:
    """Return the caller. A key that this process has just read, and an open service, ask nothing."""
    services: Services = request.app.state.services
    if "authorization" in request.headers:
        token = credentials.credentials if credentials else ""
        key = services.keys.known(token)
        return key if key else await run_in_threadpool(_find, services, token)
    _refuse_other_sites(request, services.settings)
    if services.settings.allow_anonymous:
        return ANONYMOUS
    # Without keys, only loopback is open. Another host name may be a web page's name that resolves to this
    # machine.
    may_be_open = (
        services.settings.allow_anonymous is None
        and services.settings.is_loopback
        and is_loopback(_host(request))
        and not services.settings.require_keys
    )
    if not (may_be_open and services.keys.had_none):
        await run_in_threadpool(_check_open, services, may_be_open)
    return ANONYMOUS


def _find(services: Services, token: str) -> ApiKey:
    key = services.keys.find(token)
    if key is None:
        raise _refusal(services, "Authorization holds no valid API key; send it as `Bearer cs_…`")
    with contextlib.suppress(StorageUnavailable):  # keys of an earlier version have no marker
        if not services.storage.has_keys():
            services.storage.mark_keys()
    return key


def _check_open(services: Services, may_be_open: bool) -> None:
    if not may_be_open or _needs_keys(services) or services.keys.exist():
        raise _refusal(services, "an API key is needed: Authorization: Bearer cs_…")


def _needs_keys(services: Services) -> bool:
    return services.settings.require_keys or services.storage.has_keys()


def _refusal(services: Services, detail: str) -> ClipSynthError:
    """Return the error for a request without a valid key; another one if there is no key at all."""
    if _needs_keys(services) and not services.keys.exist():
        return KeysMissing("Redis has no API keys; restore it, or create one with `clipsynth keys create`")
    return Unauthorized(detail)


def _refuse_other_sites(request: Request, settings: Settings) -> None:
    """Refuse web pages of other sites: without keys, any page that a user visits could send forms here.

    Browsers send Sec-Fetch-Site to https and to this machine only, and Origin with every POST. Another port
    of this machine is another origin of the same site. No page can set X-Forwarded-Host in a form.
    """
    site, origin = (request.headers.get(name) for name in ("sec-fetch-site", "origin"))
    if {origin, "*"} & set(settings.cors_origins):
        return
    own = {request.headers.get(name) for name in ("host", "x-forwarded-host")}
    if site == "cross-site" or (origin is not None and origin.partition("://")[2] not in own):
        raise Forbidden("a page of another site needs an API key; see CLIPSYNTH_CORS_ORIGINS")


def _host(request: Request) -> str:
    """Return the requested host name; empty if it cannot be parsed.

    Starlette would return the listening address.
    """
    try:
        return urlsplit(f"//{request.headers.get('host', '')}").hostname or ""
    except ValueError:
        return ""


def _needs(scope: Scope) -> Callable[..., Awaitable[ApiKey]]:
    async def check(request: Request, credentials: Bearer) -> ApiKey:
        return _with(scope, await _caller(request, credentials))

    return check


def _with(scope: Scope, caller: ApiKey) -> ApiKey:
    if scope not in caller.scopes and "admin" not in caller.scopes:
        raise Forbidden(f"this API key does not have the scope {scope!r}")
    return caller


async def _shim_maker(
    request: Request, credentials: Bearer, token: Annotated[str | None, Depends(_xi_api_key)]
) -> ApiKey:
    key, services = None, request.app.state.services
    if token is not None and "authorization" not in request.headers:
        # ElevenLabs' clients send their own key, which an open service needs not know.
        key = services.keys.known(token) or await run_in_threadpool(services.keys.find, token)
    return _with("generate", key or await _caller(request, credentials))


KeyHeader = Annotated[str | None, Header(min_length=1, max_length=255)]  # Idempotency-Key
Maker = Annotated[ApiKey, Depends(_needs("generate"))]
ShimMaker = Annotated[ApiKey, Depends(_shim_maker)]
Reader = Annotated[ApiKey, Depends(_needs("read"))]
Admin = Annotated[ApiKey, Depends(_needs("admin"))]


def warning(settings: Settings) -> str | None:
    """Return the warning about keys for the log of the API."""
    where = f"{settings.published_host or settings.host}:{settings.port}"
    if settings.allow_anonymous:
        return f"CLIPSYNTH_ALLOW_ANONYMOUS is set: everyone who reaches {where} may generate without a key"
    if settings.allow_anonymous is None and settings.is_loopback and not settings.require_keys:
        return f"{where} is open without keys until `clipsynth keys create` creates the first one"
    return None
