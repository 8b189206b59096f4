"""Route of a generation's server-sent events."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from app.dependencies import Reader, ServicesDep
from app.notifications import event_id_of
from app.responses.problems import problems
from clipsynth.schemas.generation import TERMINAL

router = APIRouter(prefix="/v1/generations", tags=["generations"])
# Of any type: some clients read the stream as one text, others each event as an object.
EVENTS = {
    "description": "Server-sent events `status`, `progress` and `completed` with the generation as data, or "
    "`gone`; the id is the state.",
    "examples": ['event: completed\ndata: {"id": "gen_…", …}\nid: succeeded-0\n\n'],
}


@router.get(
    "/{generation_id}/events",
    response_class=StreamingResponse,
    responses={
        200: {
            "description": "The `data` of each event is the generation.",
            "content": {"text/event-stream": {"schema": EVENTS}},
        },
        204: {"description": "The client has the final event."},
        **problems("not_found", "gone", "rate_limited"),
    },
)
async def events(
    generation_id: str,
    request: Request,
    services: ServicesDep,
    caller: Reader,
    last_event_id: Annotated[str | None, Header(max_length=100)] = None,
) -> Response:
    """Follow a generation as server-sent events: `status`, `progress`, and finally `completed`.

    The data of each event is the generation. A client whose `Last-Event-ID` is the final event gets 204, so
    that it does not connect again.
    """
    generation = await run_in_threadpool(services.state.get, generation_id, owner=caller.id)
    if generation.status in TERMINAL and last_event_id == event_id_of(generation):
        return Response(status_code=204)
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    if "is_head" in request.scope:
        return Response(media_type="text/event-stream", headers=headers)
    share = await run_in_threadpool(services.budgets.streams.take, caller.id, 1)
    return _Stream(
        services.events.stream(generation_id, caller.id, last_event_id),
        media_type="text/event-stream",
        headers=headers,
        at_end=lambda: services.budgets.streams.give_soon(share),
    )


class _Stream(StreamingResponse):
    """Calls `at_end` however it ends: with the stream, or because the client has left."""

    def __init__(self, *args: Any, at_end: Callable[[], object], **options: Any) -> None:
        super().__init__(*args, **options)
        self.at_end = at_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.at_end()
