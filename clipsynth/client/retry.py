"""Errors of the client, and its retries of temporary failures."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator

import httpx

from clipsynth.errors import ClipSynthError

MAX_BACKOFF_S = 8.0


class ServiceError(ClipSynthError):
    """The service refused a request, or a generation ended without a sound.

    Attributes:
        status: of HTTP; None where the service was not reached or a generation failed later.
        code: of the service's error catalogue, `unreachable`, or the generation's status.
        retry_after_s: from the service's Retry-After, if there is one.
    """

    def __init__(
        self, detail: str, *, code: str, status: int | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(detail)
        self.code, self.status, self.retry_after_s = code, status, retry_after_s

    @property
    def is_temporary(self) -> bool:
        """Whether the same request may succeed later."""
        return self.code == "unreachable" or self.status in (429, 502, 503, 504)


class RetryPolicy:
    """Waits after temporary failures, longer each time or as the service says, for `patience_s` in all."""

    def __init__(self, patience_s: float) -> None:
        self.until = time.monotonic() + patience_s
        self.backoff_s = 0.25

    async def wait_after(self, error: ServiceError) -> None:
        """Wait, or raise the error again if it is not temporary or the time is over."""
        pause_s = self.backoff_s if error.retry_after_s is None else error.retry_after_s
        if not error.is_temporary or time.monotonic() + pause_s > self.until:
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
    """Raise ServiceError for an error response."""
    if response.is_success:
        return
    await response.aread()
    try:
        problem = response.json()
    except ValueError:
        problem = {}
    pause = response.headers.get("Retry-After", "")
    raise ServiceError(
        problem.get("detail") or f"the service answered {response.status_code}",
        code=problem.get("code", "unknown"),
        status=response.status_code,
        retry_after_s=float(pause) if pause.isdigit() else None,
    )
