"""Limit the size of bodies and the time for them to arrive."""

from __future__ import annotations

import asyncio
import contextlib

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.responses.problems import refusal
from clipsynth.errors import ClipSynthError, PayloadTooLarge, ReceiveTimeout
from clipsynth.settings import Settings

# Name in the scope of a function that is awaited with the size of the body so far; it may raise.
GROWS = "clipsynth.body_grows"
# The time for a form counts from its last bytes: a video takes long. All of it takes at most so many times.
FORM_TIMEOUTS = 10
# Bytes of a form that are read before its length is refused.
FORM_HEAD = 65_536
# A body of at most so many bytes is received before an answer that does not need it, for so long.
SMALL_BYTES, SMALL_S = 65_536, 1.0


def content_length(headers: Headers) -> int:
    """Return what Content-Length says, or 0 if it says no number."""
    text = headers.get("content-length", "")
    return int(text) if text.isdecimal() else 0


class BodyLimit:
    """ASGI middleware that limits the size of a body and the time for it to arrive.

    Content-Length is not trusted. After an answer to an incomplete body the connection is closed, because its
    client may continue to send. A client that does so may miss the answer, so small bodies are received.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app, self.settings, self.timeout_s = app, settings, settings.receive_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        is_form = headers.get("content-type", "").lower().startswith("multipart/form-data")
        max_bytes = self.settings.max_form_bytes if is_form else self.settings.max_body_bytes
        declared = content_length(headers)
        whole = not declared and "transfer-encoding" not in headers
        now = asyncio.get_running_loop().time
        deadline, latest = now() + self.timeout_s, now() + FORM_TIMEOUTS * self.timeout_s
        size = 0

        async def counted() -> Message:
            nonlocal size, whole, deadline
            if whole:  # the only message left is the disconnect
                return await receive()
            # The parser of a form may name the part that is too large.
            if max(size, declared if size >= FORM_HEAD or not is_form else 0) > max_bytes:
                raise refusal(PayloadTooLarge(f"the body is larger than {max_bytes} bytes"))
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                raise refusal(ReceiveTimeout(f"the body was not whole after {self.timeout_s:g} s")) from None
            size += len(message.get("body", b""))
            if is_form:
                deadline = min(now() + self.timeout_s, latest)
            if size > max_bytes:
                return await counted()
            if GROWS in scope:
                await scope[GROWS](size)
            whole = not message.get("more_body", False)
            return message

        async def closing(message: Message) -> None:
            is_start = message["type"] == "http.response.start"
            if is_start and 0 < declared <= SMALL_BYTES and now() < deadline and "expect" not in headers:
                with contextlib.suppress(HTTPException, ClipSynthError, TimeoutError):
                    async with asyncio.timeout(SMALL_S):
                        while not whole:
                            await counted()
            if is_start and not whole:
                MutableHeaders(scope=message)["Connection"] = "close"
            await send(message)

        await self.app(scope, counted, closing)
