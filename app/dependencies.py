"""What routes need: the connections of the process, and the API key of the caller."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import urlsplit

from fastapi import Depends, Header, Request
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer
from redis import Redis

from app.notifications import Notifications
from clipsynth.budgets import Budgets
from clipsynth.errors import ClipSynthError, Forbidden, KeysMissing, StorageUnavailable, Unauthorized
from clipsynth.jobs.store import JobStore
from clipsynth.redis_keys import API_KEYS
from clipsynth.security.api_keys import ANONYMOUS, ApiKey, Scope, find_key
from clipsynth.settings import Settings, is_loopback
from clipsynth.storage import Storage


@dataclass(frozen=True)
class Services:
    """Connections and budgets of the process."""

    settings: Settings
    redis: Redis
    state: JobStore
    storage: Storage
    budgets: Budgets
    events: Notifications


# Async, because FastAPI runs other dependencies in a thread.
async def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


ServicesDep = Annotated[Services, Depends(_services)]
_bearer = HTTPBearer(auto_error=False, description="created by `clipsynth keys create`")
_xi_api_key = APIKeyHeader(name="xi-api-key", auto_error=False, description="header of ElevenLabs' clients")
Bearer = Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]


def _caller(request: Request, services: ServicesDep, credentials: Bearer) -> ApiKey:
    if "authorization" in request.headers:
        key = find_key(services.redis, credentials.credentials) if credentials else None
        if key is None:
            raise _refusal(services, "Authorization holds no valid API key; send it as `Bearer cs_…`")
        with contextlib.suppress(StorageUnavailable):  # keys of an earlier version have no marker
            if not services.storage.has_keys():
                services.storage.mark_keys()
        return key
    _refuse_other_sites(request, services.settings)
    if services.settings.allow_anonymous:
        return ANONYMOUS
    # Without keys, only loopback is open. Another host name may be a web page's name that resolves to this
    # machine.
    is_open = (
        services.settings.allow_anonymous is None
        and services.settings.is_loopback
        and is_loopback(_host(request))
        and not services.redis.exists(API_KEYS)
        and not _needs_keys(services)
    )
    if not is_open:
        raise _refusal(services, "an API key is needed: Authorization: Bearer cs_…")
    return ANONYMOUS


def _needs_keys(services: Services) -> bool:
    return services.settings.require_keys or services.storage.has_keys()


def _refusal(services: Services, detail: str) -> ClipSynthError:
    """Return the error for a request without a valid key; another one if there is no key at all."""
    if _needs_keys(services) and not services.redis.exists(API_KEYS):
        return KeysMissing("Redis has no API keys; restore it, or create one with `clipsynth keys create`")
    return Unauthorized(detail)


def _shim_caller(
    request: Request,
    services: ServicesDep,
    credentials: Bearer,
    token: Annotated[str | None, Depends(_xi_api_key)],
) -> ApiKey:
    if token is None or "authorization" in request.headers:
        return _caller(request, services, credentials)
    # ElevenLabs' clients send their own key, which an open service needs not know.
    return find_key(services.redis, token) or _caller(request, services, None)


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


def _needs(scope: Scope, who: Callable[..., Any] = _caller) -> Callable[[ApiKey], Awaitable[ApiKey]]:
    found: ApiKey = Depends(who)

    async def check(caller: ApiKey = found) -> ApiKey:
        if scope not in caller.scopes and "admin" not in caller.scopes:
            raise Forbidden(f"this API key does not have the scope {scope!r}")
        return caller

    return check


KeyHeader = Annotated[str | None, Header(min_length=1, max_length=255)]  # Idempotency-Key
Maker = Annotated[ApiKey, Depends(_needs("generate"))]
ShimMaker = Annotated[ApiKey, Depends(_needs("generate", _shim_caller))]
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
