"""The context of every request: an id, headers for browsers, a log line, a plain 500, HEAD as GET."""

from __future__ import annotations

import logging
import re
import secrets
import time

from fastapi import FastAPI
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.responses.problems import unexpected
from clipsynth.log import ACCESS, REQUEST_ID
from clipsynth.schemas.paths import PATH_PREFIX
from clipsynth.security.headers import ANSWER_HEADERS, HEADERS
from clipsynth.settings import Settings

logger = logging.getLogger(ACCESS)
_SANE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SANE_PREFIX = re.compile(r"(?=.{1,200}$)(?:/(?!\.\.?(?:/|$))[\w.~-]+)+", re.ASCII)
QUIET = frozenset({"/livez", "/healthz", "/readyz", "/metrics"})  # probes are not logged


def install(app: FastAPI, settings: Settings) -> None:
    """Add the outermost middleware; call it after all others are added."""
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=[
                "Authorization",
                "Content-Type",
                "Idempotency-Key",
                "Last-Event-ID",
                "Prefer",
                "Range",
                "X-Request-Id",
                "xi-api-key",
            ],
            expose_headers=[
                "Content-Disposition",
                "Content-Range",
                "ETag",
                "Generation-Id",
                "Idempotent-Replayed",
                "Location",
                "Preference-Applied",
                "RateLimit",
                "RateLimit-Policy",
                "Retry-After",
                "X-Request-Id",
            ],
        )
    app.add_middleware(RequestContext, root_path=settings.root_path)


class RequestContext:
    """ASGI middleware that gives each request an id and sends it back.

    A client's `X-Request-Id` is used if it is a short word. Paths in answers start with the prefix that a
    proxy has stripped: `X-Forwarded-Prefix`, else `root_path`.
    """

    def __init__(self, app: ASGIApp, root_path: str = "") -> None:
        self.app, self.root_path = app, root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        sent = Headers(scope=scope).get("x-request-id", "")
        request_id = sent if _SANE_ID.fullmatch(sent) else f"req_{secrets.token_hex(8)}"
        REQUEST_ID.set(request_id)
        own_headers: dict[str, str] = {}
        ANSWER_HEADERS.set(own_headers)
        forwarded = Headers(scope=scope).get("x-forwarded-prefix", "").rstrip("/")
        prefix = forwarded if _SANE_PREFIX.fullmatch(forwarded) else self.root_path
        PATH_PREFIX.set(prefix)
        if prefix:
            scope.update(root_path=prefix, path=prefix + scope["path"])
        status = 0

        async def add_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = request_id
                headers.update(own_headers)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            await self.app(scope, receive, add_headers)
        except Exception as error:
            if status:  # the response has begun and can only be cut off
                raise
            await unexpected(error, request_id)(scope, receive, add_headers)
        finally:
            route = getattr(scope.get("route"), "path", "none")
            if route not in QUIET:
                seconds = round(time.perf_counter() - started, 4)
                logger.info(
                    "%s %s %d",
                    scope["method"],
                    route,
                    status,
                    extra={"route": route, "status": status, "seconds": seconds},
                )


class HeadAsGet:
    """ASGI middleware that answers HEAD as GET, without the body.

    `scope["is_head"]` is set for routes whose GET has no end or no fixed length.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self.app(scope, receive, send)
            return

        async def without_body(message: Message) -> None:
            # The server compares the body of any other method with its length.
            scope["method"] = "HEAD"
            await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

        scope.update(method="GET", is_head=True)
        try:
            await self.app(scope, receive, without_body)
        finally:
            scope["method"] = "HEAD"
