"""What routes need, as one typed dependency."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request
from redis import Redis

from app.notifications import Notifications
from clipsynth.errors import RateLimited
from clipsynth.jobs.store import JobStore
from clipsynth.schemas.request import GenerationRequest
from clipsynth.settings import Settings
from clipsynth.storage import Storage

MAX_FETCHES = 8  # requests at a time
FETCH_RETRY_S = 10.0


@dataclass(frozen=True)
class Services:
    """The process's connections."""

    settings: Settings
    redis: Redis
    state: JobStore
    storage: Storage
    events: Notifications
    # Held for a request with images at hand, which else would hold a thread until its turn to be decoded.
    decoding: asyncio.Semaphore
    fetches: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(MAX_FETCHES))

    @asynccontextmanager
    async def image_slot(self, wanted: GenerationRequest) -> AsyncIterator[None]:
        """Hold a place for a request with images. To fetch takes a thread for a while, and others need some too; to decode takes memory.

        Raises:
            RateLimited: all places for requests whose images are to be fetched are taken.
        """
        if wanted.has_urls and self.fetches.locked():
            raise RateLimited("too many images are being fetched", retry_after_s=FETCH_RETRY_S)
        async with self.fetches if wanted.has_urls else self.decoding:
            yield


async def _services(request: Request) -> Services:  # async, for FastAPI gives others a thread
    services: Services = request.app.state.services
    return services


ServicesDep = Annotated[Services, Depends(_services)]
