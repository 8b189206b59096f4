"""Bodies on their way in: counted as bytes in flight, and kept in a file when they are large."""

from __future__ import annotations

import contextlib
import mmap
import re
from collections.abc import AsyncIterator
from tempfile import SpooledTemporaryFile
from typing import IO

from fastapi import Request
from fastapi.concurrency import run_in_threadpool

from app.dependencies import Services
from app.middleware.body_limit import GROWS
from app.responses.problems import refusal
from clipsynth.budgets import SMALL_UPLOAD, Budget, Share
from clipsynth.errors import InvalidRequest, PayloadTooLarge
from clipsynth.schemas.prompts import NO_DATA_URL
from clipsynth.security.api_keys import ApiKey

# Bytes of a JSON body without its images, and of one field of a form. A larger body goes to a file.
MAX_TEXT_BYTES = SMALL_UPLOAD
# Bytes by which the share of a body of unknown length grows.
BLOCK_BYTES = 1_048_576
# Bytes that are received of a refused body.
DRAINED_BYTES = 4 * MAX_TEXT_BYTES
_DATA_URL = re.compile(rb'"image_url"\s*:\s*"data:', re.IGNORECASE)


@contextlib.asynccontextmanager
async def counted(request: Request, services: Services, caller: ApiKey) -> AsyncIterator[None]:
    """Count the body as bytes in flight of its key while the context lasts.

    Raises:
        UploadBudget: the key or the process receives too many bytes.
    """
    budget = services.budgets.uploads
    shares: list[Share] = []

    async def grow(amount: int) -> None:
        shares.append(await _take(budget, caller.id, amount))

    async def received(size: int) -> None:
        if size > (held := sum(share.amount for share in shares)):
            await grow(max(BLOCK_BYTES, size - held))

    try:
        length = request.headers.get("content-length", "")
        declared = int(length) if length.isdecimal() else MAX_TEXT_BYTES
        # BodyLimit refuses a larger one.
        is_small = declared <= MAX_TEXT_BYTES
        await grow(declared if is_small or declared <= services.settings.max_form_bytes else 0)
        # A server ends a body at its declared length.
        if not (is_small and length.isdecimal()):
            request.scope[GROWS] = received
        yield
    finally:
        request.scope.pop(GROWS, None)
        for share in shares:
            budget.give_soon(share)


async def _take(budget: Budget, owner: str, amount: int) -> Share:
    if amount <= budget.uncounted:  # asks Redis nothing
        return budget.take(owner, amount)
    return await run_in_threadpool(budget.take, owner, amount)


@contextlib.asynccontextmanager
async def spooled(request: Request, *, images: bool) -> AsyncIterator[bytes | mmap.mmap]:
    """Receive a JSON body; yield its bytes, or a large one as a map of its file.

    Args:
        images: whether it may have images. One without is refused after `MAX_TEXT_BYTES`.
    """
    with SpooledTemporaryFile(max_size=MAX_TEXT_BYTES) as file:
        size = 0
        error: Exception | None = None
        async for chunk in request.stream():
            size += len(chunk)
            if size <= MAX_TEXT_BYTES:
                file.write(chunk)
            else:
                if size - len(chunk) <= MAX_TEXT_BYTES:
                    error = _beginning_error(file, chunk, images=images)
                # A client that still sends may miss the answer.
                if error and size > DRAINED_BYTES:
                    raise error
                if not error:
                    await run_in_threadpool(file.write, chunk)
        if error:
            raise error
        if size <= MAX_TEXT_BYTES:
            file.seek(0)
            yield file.read()
        else:
            file.flush()
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                yield data


def text_too_large() -> PayloadTooLarge:
    """Return the error of a body that is large without images."""
    return PayloadTooLarge(f"the body without its images is larger than {MAX_TEXT_BYTES} bytes")


def _beginning_error(file: IO[bytes], chunk: bytes, *, images: bool) -> Exception | None:
    """Return the error of a body that has no image in its first `MAX_TEXT_BYTES`; None of another one."""
    file.seek(0)
    beginning = (file.read() + chunk)[:MAX_TEXT_BYTES]
    if images and b'"image"' in beginning:
        return None
    if images and _DATA_URL.search(beginning):
        return InvalidRequest(f"/image_url: {NO_DATA_URL}")
    return refusal(text_too_large())
