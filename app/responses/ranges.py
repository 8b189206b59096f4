"""Immutable files over HTTP: ETag, conditional and Range requests.

RFC 9110, sections 13 and 14; one range.
"""

from __future__ import annotations

import hashlib
import re

from fastapi import Request, Response

from clipsynth.errors import RangeNotSatisfiable

_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


def file_response(request: Request, data: bytes, *, media_type: str, disposition: str) -> Response:
    """Return `data`, a part of it (206), or 304 if the client has it.

    Raises:
        RangeNotSatisfiable: the range starts after the end.
    """
    etag = f'"{hashlib.sha256(data).hexdigest()}"'
    headers = {
        "ETag": etag,
        "Accept-Ranges": "bytes",
        "Content-Disposition": disposition,
        "Cache-Control": "private, max-age=31536000, immutable",
    }

    # Conditions and ranges apply to GET and HEAD only (RFC 9110, 13.1.2 and 14.2).
    if request.method == "POST":
        return Response(data, 200, headers, media_type)
    known = {tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")}
    if known & {etag, "*"}:
        return Response(status_code=304, headers=headers)
    status, part = 200, data
    # A range is of GET only (14.2).
    asked = "" if "is_head" in request.scope else request.headers.get("range", "")
    if request.headers.get("if-range", etag) == etag and (span := _parse(asked, len(data))):
        status, part = 206, data[span.start : span.stop]
        headers["Content-Range"] = f"bytes {span.start}-{span.stop - 1}/{len(data)}"
    return Response(part, status, headers, media_type)


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
