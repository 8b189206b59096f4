"""Immutable files over HTTP: ETag, conditional and Range requests.

RFC 9110, sections 13 and 14; one range.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from typing import Any

from fastapi import Request, Response
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from clipsynth.budgets import Budget
from clipsynth.errors import RangeNotSatisfiable
from clipsynth.storage import Storage

_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


# A budget, and the API key whose clients receive the bytes.
Account = tuple[Budget, str]


class _Counted(Response):
    """Holds its body as bytes in flight of a key until it is sent or the client has left."""

    def __init__(self, account: Account, *args: Any) -> None:
        super().__init__(*args)
        self.budget, owner = account
        self.share = self.budget.take(owner, len(self.body))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.budget.give_soon(self.share)


def file_response(
    request: Request, data: bytes, *, media_type: str, disposition: str, account: Account
) -> Response:
    """Return `data`, a part of it (206), or 304 if the client has it.

    Args:
        account: budget and API key that hold the bytes until the client has them.

    Raises:
        RangeNotSatisfiable: the range starts after the end.
        DownloadBudget: the key or the process sends too many bytes at a time.
    """
    digest = hashlib.sha256(data).hexdigest()

    def read(part: range) -> bytes:
        return data[part.start : part.stop]

    return _respond(request, len(data), digest, read, media_type, disposition, account)


def stored_response(
    request: Request, storage: Storage, key: str, *, etag: str, media_type: str, disposition: str
) -> Response:
    """Return a stored file as `file_response`, but read it while it is sent.

    Args:
        etag: a name of the file's content.

    Raises:
        NotFound, StorageUnavailable: as `Storage.get`.
    """
    size = storage.size(key)
    return _respond(request, size, etag, lambda part: storage.chunks(key, part), media_type, disposition)


def _respond(
    request: Request,
    size: int,
    digest: str,
    read: Callable[[range], bytes | Iterator[bytes]],
    media_type: str,
    disposition: str,
    account: Account | None = None,
) -> Response:
    etag = f'"{digest}"'
    headers = {
        "ETag": etag,
        "Accept-Ranges": "bytes",
        "Content-Disposition": disposition,
        "Cache-Control": "private, max-age=31536000, immutable",
    }

    # Conditions and ranges apply to GET and HEAD only (RFC 9110, 13.1.2 and 14.2).
    if request.method == "POST":
        return _body(200, headers, media_type, range(size), read, account)
    known = {tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")}
    if known & {etag, "*"}:
        return Response(status_code=304, headers=headers)
    status, part = 200, range(size)
    # A range is of GET only (14.2).
    asked = "" if "is_head" in request.scope else request.headers.get("range", "")
    if request.headers.get("if-range", etag) == etag and (span := _parse(asked, size)):
        status, part = 206, span
        headers["Content-Range"] = f"bytes {span.start}-{span.stop - 1}/{size}"
    if "is_head" in request.scope:
        headers["Content-Length"] = str(size)
        return Response(None, status, headers, media_type)
    return _body(status, headers, media_type, part, read, account)


def _body(
    status: int,
    headers: dict[str, str],
    media_type: str,
    part: range,
    read: Callable[[range], bytes | Iterator[bytes]],
    account: Account | None,
) -> Response:
    body = read(part)
    if isinstance(body, bytes):
        assert account
        return _Counted(account, body, status, headers, media_type)
    length = {"Content-Length": str(len(part))}
    return StreamingResponse(body, status, {**headers, **length}, media_type)


def _parse(header: str, size: int) -> range | None:
    """Return the requested bytes; None if the header is absent or may be ignored."""
    match = _RANGE.fullmatch(header.strip())
    if not match or not any(match.groups()):
        return None
    first, last = match.groups()
    if not first:  # the last n bytes
        span = range(max(0, size - int(last)), size)
    elif last and int(last) < int(first):
        return None
    else:
        span = range(int(first), min(int(last) + 1, size) if last else size)
    if not span:
        raise RangeNotSatisfiable(size)
    return span
