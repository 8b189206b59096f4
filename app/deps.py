"""What routes need, as one typed dependency."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request
from redis import Redis

from app.events import Events
from clipsynth.settings import Settings
from clipsynth.state import State
from clipsynth.storage import Storage


@dataclass(frozen=True)
class Services:
    """The process's connections."""

    settings: Settings
    redis: Redis
    state: State
    storage: Storage
    events: Events
    decoding: (
        asyncio.Semaphore
    )  # held for a request with a picture: each takes up to 480 MB while it is decoded


def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


ServicesDep = Annotated[Services, Depends(_services)]
