"""Errors as RFC 9457 problem+json. The only place that decides an HTTP status."""

from __future__ import annotations

import errno
import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from redis.exceptions import RedisError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match

from clipsynth.errors import ClipSynthError, json_pointer

logger = logging.getLogger(__name__)
# Characters of a detail or pointer, which may repeat a part of the request.
MAX_DETAIL, MAX_POINTER = 2000, 200

# Of routes that send a stored file.
FILE_PROBLEMS = (
    "not_found",
    "gone",
    "not_ready",
    "range_not_satisfiable",
    "storage_unavailable",
    "download_budget",
)
STATUS = {
    "invalid_body": 400,
    "unauthorized": 401,
    "forbidden": 403,
    "invalid_request": 422,
    "model_not_found": 422,
    "unreadable_prompt": 422,
    "attribute_unavailable": 422,
    "method_unavailable": 422,
    "idempotency_mismatch": 422,
    "deadline_unreachable": 422,
    "too_long": 422,
    "image_undecodable": 422,
    "video_undecodable": 422,
    "video_too_large": 413,
    "image_not_fetched": 422,
    "unsupported_media": 415,
    "payload_too_large": 413,
    "receive_timeout": 408,
    "image_too_large": 413,
    "not_acceptable": 406,
    "not_found": 404,
    "gone": 410,
    "not_ready": 409,
    "already_ended": 409,
    "recipe_mismatch": 409,
    "image_gone": 410,
    "range_not_satisfiable": 416,
    "rate_limited": 429,
    "kept_quota": 429,
    "upload_budget": 429,
    "download_budget": 429,
    "queue_full": 429,
    "generation_failed": 500,
    "keys_missing": 503,
    "record_unreadable": 500,
    "no_worker": 503,
    "overloaded": 503,
    "redis_unavailable": 503,
    "not_in_time": 504,
    "storage_unavailable": 503,
    "storage_full": 503,
}


class ProblemDetails(BaseModel):
    """An RFC 9457 problem. `code` is stable; `detail` is for people."""

    type: str
    title: str
    status: int
    code: str
    detail: str
    errors: list[dict[str, str]] = []


_CODES = {
    400: "invalid_body",
    404: "not_found",
    408: "receive_timeout",
    405: "method_not_allowed",
    413: "payload_too_large",
    415: "unsupported_media",
}


def problems(*codes: str, needs_key: bool = True) -> dict[int | str, dict[str, Any]]:
    """Return the `responses` of a route that can fail with these codes and with the general ones."""
    by_status: dict[int | str, list[str]] = {}
    refusals = ("unauthorized", "forbidden", "keys_missing") if needs_key else ()
    for code in (*codes, *refusals, "invalid_request", "redis_unavailable"):
        by_status.setdefault(STATUS[code], []).append(code)
    return {
        status: {
            "description": ", ".join(dict.fromkeys(names)),
            "content": {
                "application/problem+json": {"schema": {"$ref": "#/components/schemas/ProblemDetails"}}
            },
        }
        for status, names in sorted(by_status.items())
    }


def problem(
    status: int,
    code: str,
    detail: str,
    errors: list[dict[str, str]] | None = None,
    *,
    retry_after_s: float | None = None,
) -> JSONResponse:
    """Return a problem+json response."""
    body: dict[str, object] = {
        "type": "about:blank",
        "title": code.replace("_", " "),
        "status": status,
        "code": code,
        "detail": _encodable(detail[:MAX_DETAIL]),
    }
    if errors:
        body["errors"] = errors
    headers = {}
    if status in (429, 503):
        headers["Retry-After"] = str(math.ceil(retry_after_s or 5))
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(body, status, headers, media_type="application/problem+json")


def _encodable(text: str) -> str:
    """Replace unpaired surrogates: JSON may contain them as escapes, UTF-8 cannot."""
    return text.encode(errors="replace").decode()


def validation_problem(error: RequestValidationError) -> JSONResponse:
    """Return a 422 that names each field."""
    errors = [
        {
            "pointer": _encodable(_pointer(e["loc"])),
            "detail": _encodable(str(e["msg"])[:MAX_POINTER]),
        }
        for e in error.errors()
    ]
    detail = "; ".join(f"{e['pointer']}: {e['detail']}" if e["pointer"] else e["detail"] for e in errors)
    return problem(422, "invalid_request", detail, errors)


def _pointer(place: Sequence[object]) -> str:
    # Pydantic adds a part for a bad name in an object.
    parts = place[:-1] if place[-1:] == ("[key]",) else place
    return json_pointer(*(str(part)[:MAX_POINTER] for part in parts))


def refusal(error: ClipSynthError) -> HTTPException:
    """Return an error to raise while FastAPI reads a body; it turns other errors into a 400."""
    return HTTPException(STATUS[error.code], str(error))


def unexpected(error: Exception, request_id: str) -> JSONResponse:
    """Log an unexpected error and return a 500 without its details."""
    logger.error("request %s failed", request_id, exc_info=error)
    return problem(500, "internal_error", f"something went wrong; request {request_id}")


def _methods(request: Request) -> list[str]:
    """Return the methods that the request's path allows; Starlette's header names only its first route's."""
    known = {"DELETE": "DELETE", "GET": "GET", "HEAD": "GET", "PATCH": "PATCH", "POST": "POST", "PUT": "PUT"}
    scopes = {method: {**request.scope, "method": asked} for method, asked in known.items()}
    return [m for m in known if any(r.matches(scopes[m])[0] is Match.FULL for r in request.app.routes)]


def install(app: FastAPI, *, count: Callable[[str], None] = lambda _: None) -> None:
    """Register the handlers; `count` is called with each code."""

    @app.exception_handler(ClipSynthError)
    async def _(_: Request, error: ClipSynthError) -> JSONResponse:
        count(error.code)
        text = str(error)
        pointer, colon, detail = text.partition(": ")
        is_pointer = colon and pointer.startswith("/") and len(text) <= MAX_DETAIL
        errors = [{"pointer": pointer, "detail": detail}] if is_pointer else None
        response = problem(STATUS[error.code], error.code, text, errors, retry_after_s=error.retry_after_s)
        response.headers.update(error.headers)
        return response

    @app.exception_handler(RequestValidationError)
    async def _(_: Request, error: RequestValidationError) -> JSONResponse:
        count("invalid_request")
        return validation_problem(error)

    @app.exception_handler(HTTPException)
    async def _(request: Request, error: HTTPException) -> JSONResponse:
        code = _CODES.get(error.status_code, "http_error")
        count(code)
        response = problem(error.status_code, code, str(error.detail))
        response.headers.update(error.headers or {})
        if error.status_code == 405:
            response.headers["Allow"] = ", ".join(_methods(request))
        return response

    @app.exception_handler(ClientDisconnect)
    async def _(_: Request, __: ClientDisconnect) -> JSONResponse:
        return problem(400, "invalid_body", "the client left before its body was whole")

    @app.exception_handler(OSError)
    async def _(_: Request, error: OSError) -> JSONResponse:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise error
        count("storage_full")
        return problem(STATUS["storage_full"], "storage_full", "there is no room for uploads now")

    @app.exception_handler(RedisError)
    async def _(_: Request, error: RedisError) -> JSONResponse:
        count("redis_unavailable")
        logger.warning("Redis: %s", error)
        return problem(503, "redis_unavailable", "the queue does not answer; try again")
