"""Limit the size of bodies and the time for them to arrive."""

from __future__ import annotations

import asyncio

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.responses.problems import refusal
from clipsynth.errors import PayloadTooLarge, ReceiveTimeout


class BodyLimit:
    """ASGI middleware that limits the size of a body and the time for it to arrive.

    Content-Length is not trusted. After an answer to an incomplete body the connection is closed, because its
    client may continue to send.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, timeout_s: float) -> None:
        self.app, self.max_bytes, self.timeout_s = app, max_bytes, timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        length = headers.get("content-length", "0")
        declared = int(length) if length.isdecimal() else 0
        whole = not declared and "transfer-encoding" not in headers
        deadline = asyncio.get_running_loop().time() + self.timeout_s
        size = 0

        async def counted() -> Message:
            nonlocal size, whole
            if whole:  # the only message left is the disconnect
                return await receive()
            if max(size, declared) > self.max_bytes:
                raise refusal(PayloadTooLarge(f"the body is larger than {self.max_bytes} bytes"))
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                raise refusal(ReceiveTimeout(f"the body was not whole after {self.timeout_s:g} s")) from None
            size += len(message.get("body", b""))
            if size > self.max_bytes:
                return await counted()
            whole = not message.get("more_body", False)
            return message

        async def closing(message: Message) -> None:
            if message["type"] == "http.response.start" and not whole:
                MutableHeaders(scope=message)["Connection"] = "close"
            await send(message)

        await self.app(scope, counted, closing)
