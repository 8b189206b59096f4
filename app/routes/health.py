"""Probes: whether the process lives, and whether it can take a job."""

from __future__ import annotations

from fastapi import APIRouter, Response

from app.dependencies import ServicesDep
from app.responses.problems import problems
from clipsynth.errors import NoWorker
from clipsynth.jobs.queue import check_writes

router = APIRouter(tags=["health"])


@router.get("/livez")
@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """Answer 200 while the event loop runs."""
    return {"status": "ok"}


@router.get(
    "/readyz", responses=problems("storage_unavailable", "storage_full", "no_worker", needs_key=False)
)
def readyz(services: ServicesDep) -> Response:
    """Answer 200 while Redis and storage take writes, from the first worker on.

    A worker that loads its model counts. It stays 200 while workers are replaced: jobs wait for them.
    """
    check_writes(services.redis)
    if not services.state.had_worker():
        raise NoWorker("no worker has come yet")
    services.budgets.room.check()
    services.storage.check()
    return Response('{"status":"ok"}', media_type="application/json")
