"""What a client makes of the service's answers: problems become `ServiceError`, and what passes is waited for."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator

import httpx

from clipsynth.errors import ClipSynthError

MAX_BACKOFF_S = 8.0


class ServiceError(ClipSynthError):
    """What the service refused, or how a generation ended that made no sound.

    Attributes:
        status: of HTTP; None where the service was not reached or a generation failed later.
        code: of the service's error catalogue, or `unreachable`, or the public status of the generation.
        retry_after_s: what the service asked for, if it did.
    """

    def __init__(
        self, detail: str, *, code: str, status: int | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(detail)
        self.code, self.status, self.retry_after_s = code, status, retry_after_s

    @property
    def passes(self) -> bool:
        """Whether the same request may succeed later."""
        return self.code == "unreachable" or self.status in (429, 502, 503, 504)


class RetryPolicy:
    """Waits after what passes, each time longer or as long as the service says, until `patience_s` are over."""

    def __init__(self, patience_s: float) -> None:
        self.until = time.monotonic() + patience_s
        self.backoff_s = 0.25

    async def wait_after(self, error: ServiceError) -> None:
        """Wait, or raise the error again: it does not pass, or there is no time left for it."""
        pause_s = self.backoff_s if error.retry_after_s is None else error.retry_after_s
        if not error.passes or time.monotonic() + pause_s > self.until:
            raise error
        self.backoff_s = min(2 * self.backoff_s, MAX_BACKOFF_S)
        await asyncio.sleep(pause_s)


@contextlib.contextmanager
def as_unreachable() -> Iterator[None]:
    try:
        yield
    except httpx.TransportError as error:
        raise ServiceError(
            f"the service does not answer: {error or type(error).__name__}", code="unreachable"
        ) from error


async def check(response: httpx.Response) -> None:
    """Raise ServiceError for an answer that tells of a problem."""
    if response.is_success:
        return
    await response.aread()
    try:
        told = response.json()
    except ValueError:
        told = {}
    pause = response.headers.get("Retry-After", "")
    raise ServiceError(
        told.get("detail") or f"the service answered {response.status_code}",
        code=told.get("code", "unknown"),
        status=response.status_code,
        retry_after_s=float(pause) if pause.isdigit() else None,
    )
