"""Routes of /v1/generations."""

from __future__ import annotations

import base64
import contextlib
import math
import re
import time
from typing import Annotated, Any, get_args

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel

from app.dependencies import KeyHeader, Maker, Reader, Services, ServicesDep
from app.requests.body import read_body, request_body
from app.requests.images import image_slot
from app.requests.submit import accept, cancel_generation
from app.requests.video import copied
from app.responses.accept import best_media_type
from app.responses.audio import (
    SOUND,
    SOUND_RESPONSES,
    VIDEO_TYPES,
    sound,
    succeeded,
    video_type,
    video_with_sound,
)
from app.responses.problems import problems
from clipsynth.errors import DownloadBudget, InvalidRequest, NotAcceptable, StorageUnavailable
from clipsynth.jobs.queue import withdraw
from clipsynth.schemas.generation import MEDIA_TYPES, Format, Generation, Page, Status
from clipsynth.schemas.request import GenerationRequest
from clipsynth.security.api_keys import ApiKey

router = APIRouter(prefix="/v1/generations", tags=["generations"])
MAX_WAIT_S = 60
# Seconds for which one request deletes.
DELETE_S = 10
JSON = "application/json"
FormatQuery = Annotated[Format | None, Query(alias="format")]
PreferHeader = Annotated[
    str | None, Header(description="wait=N: wait for the end for up to N seconds, at most 60.")
]


class Removed(BaseModel):
    """Number of removed generations."""

    deleted: int


@router.post(
    "",
    status_code=202,
    response_model=Generation,
    openapi_extra={"requestBody": request_body()},
    responses={
        200: {
            "model": Generation,
            "description": "With `Prefer: wait`: the generation has ended.",
            "content": SOUND,
        },
        **problems(
            "invalid_body",
            "unreadable_prompt",
            "model_not_found",
            "attribute_unavailable",
            "method_unavailable",
            "too_long",
            "idempotency_mismatch",
            "image_undecodable",
            "image_not_fetched",
            "video_undecodable",
            "video_too_large",
            "payload_too_large",
            "receive_timeout",
            "image_too_large",
            "unsupported_media",
            "not_acceptable",
            "deadline_unreachable",
            "gone",
            "not_ready",
            "rate_limited",
            "kept_quota",
            "queue_full",
            "no_worker",
            "storage_unavailable",
            "storage_full",
        ),
    },
)
async def create(
    request: Request,
    services: ServicesDep,
    caller: Maker,
    prefer: PreferHeader = None,
    idempotency_key: KeyHeader = None,
) -> Any:
    """Create a generation from JSON, or from a form with the same field names and images as files.

    A form may have a `video`: each of its scenes gets a sound, and the outputs are also videos.
    A repeated request with the same `Idempotency-Key` returns the same generation. With `Prefer: wait=10` the
    response waits up to 10 s for the end and is then 200; with `Accept: audio/wav` it is the sound, with
    `Accept: video/mp4` the video. Without `output_formats`, `Accept` names the format of the sound.
    """
    accept_header = request.headers.get("accept", "*/*")
    async with read_body(request, services, caller) as (wanted, files):
        if accept_header != "*/*":
            wanted = _in_accepted_format(wanted, accept_header)
        began = time.monotonic()
        slot = image_slot(services, caller, wanted) if wanted.has_images else contextlib.nullcontext()
        copying = copied(files, services.settings) if wanted.video else contextlib.nullcontext()
        async with slot, copying as video:
            accepting = run_in_threadpool(accept, services, caller, wanted, files, idempotency_key, video)
            generation, replayed = await accepting
    headers = {"Location": generation.links["self"]}
    if replayed:
        headers["Idempotent-Replayed"] = "true"
    if prefer and (wait_s := _wait_s(prefer)):
        at_end = headers | {"Preference-Applied": f"wait={wait_s}"}

        def file(ended: Generation) -> Response | None:
            return _preferred_file(services, caller, ended, request, at_end)

        made_after = -math.inf if replayed else began
        generation, made = await services.events.at_end(file, generation, wait_s, made_after=made_after)
        if made is not None:
            return made
        if generation.finished_at is not None:
            return Response(generation.model_dump_json(), 200, at_end, JSON)
    return Response(generation.model_dump_json(), 202, headers | {"Retry-After": "1"}, JSON)


def _preferred_file(
    services: Services, caller: ApiKey, generation: Generation, request: Request, headers: dict[str, str]
) -> Response | None:
    """Return the sound or video of an ended generation if Accept prefers it to JSON."""
    preferred = _preferred(generation, request.headers.get("accept", "*/*"))
    if preferred == video_type(generation):
        return video_with_sound(services, generation, 0, request, headers=headers)
    if preferred != JSON:
        with contextlib.suppress(DownloadBudget):  # then the client can fetch it later
            return sound(services, caller, generation, 0, request, headers=headers)
    return None


def _preferred(generation: Generation, accept_header: str) -> str:
    """Return the media type of an ended generation's first output that Accept prefers, or JSON."""
    made = [output.media_type for output in generation.outputs]
    video = video_type(generation)
    if made and video:
        made.append(video)
    # A client may have accepted only the container that the video does not have.
    with contextlib.suppress(NotAcceptable):
        return best_media_type([JSON, *made], accept_header)
    return JSON


def _in_accepted_format(wanted: GenerationRequest, accept_header: str) -> GenerationRequest:
    """Return the request with the format that Accept prefers, if the request names none.

    Raises:
        NotAcceptable: Accept allows neither JSON nor a format of the sound.
    """
    is_open = "output_formats" not in wanted.model_fields_set
    formats = get_args(Format) if is_open else wanted.output_formats
    offered = [JSON, *(MEDIA_TYPES[f] for f in formats), *(VIDEO_TYPES if wanted.video else ())]
    media_type = best_media_type(offered, accept_header)
    if not is_open or media_type == JSON or media_type in VIDEO_TYPES:
        return wanted
    preferred = next(f for f in formats if MEDIA_TYPES[f] == media_type)
    return wanted.model_copy(update={"output_formats": [preferred]})


def _wait_s(prefer: str) -> int:
    """Return the seconds to wait by a Prefer header (RFC 7240), or 0."""
    match = re.search(r"(?:^|[,;\s])wait=(\d{1,6})(?:$|[,;\s])", prefer)
    return min(int(match[1]), MAX_WAIT_S) if match else 0


@router.get("", response_model=Page, responses=problems())
def list_(
    services: ServicesDep,
    caller: Reader,
    status: Status | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    cursor: Annotated[str | None, Query(max_length=200)] = None,
) -> Page:
    """List the generations of this API key, the newest first.

    With `status`, a page may be short or empty and still have a next page.
    """
    before = _decode_cursor(cursor) if cursor else None
    found, place = services.state.page(status=status, before=before, limit=limit, owner=caller.id)
    return Page(data=found, next_cursor=_encode_cursor(*place) if place else None)


def _encode_cursor(created_at: float, generation_id: str) -> str:
    return base64.urlsafe_b64encode(f"{created_at!r} {generation_id}".encode()).decode()


def _decode_cursor(cursor: str) -> tuple[float, str]:
    try:
        created_at, generation_id = base64.urlsafe_b64decode(cursor).decode().split()
        place = float(created_at)
    except ValueError:
        raise InvalidRequest("/cursor: not the next_cursor of a page") from None
    if not math.isfinite(place):
        raise InvalidRequest("/cursor: not the next_cursor of a page")
    return place, generation_id


@router.get("/{generation_id}", response_model=Generation, responses=problems("not_found", "gone"))
async def get(generation_id: str, services: ServicesDep, caller: Reader) -> Response:
    """Return a generation; with Retry-After while it is unfinished."""
    generation = await run_in_threadpool(services.state.get, generation_id, owner=caller.id)
    headers = {"Retry-After": "1"} if generation.finished_at is None else None
    # As JSON at once: FastAPI would validate it again.
    return Response(generation.model_dump_json(), 200, headers, JSON)


@router.post(
    "/{generation_id}/cancel",
    response_model=Generation,
    responses={
        202: {"model": Generation, "description": "A worker processes it and stops at its next step."},
        **problems("not_found", "gone", "already_ended"),
    },
)
def cancel(generation_id: str, response: Response, services: ServicesDep, caller: Maker) -> Generation:
    """Cancel a generation: 200 if it was queued, 202 if a worker stops it at its next step."""
    generation = cancel_generation(services, generation_id, owner=caller.id)
    if generation.status is Status.PROCESSING:
        response.status_code = 202
    return generation


@router.delete(
    "/{generation_id}",
    status_code=204,
    response_class=Response,
    responses={
        202: {"description": "A worker processes it and stops at its next step."},
        **problems("not_found", "gone"),
    },
)
def delete(generation_id: str, services: ServicesDep, caller: Maker) -> Response:
    """Remove a generation and its files; 202 if a worker stops it at its next step."""
    generation = services.state.get(generation_id, owner=caller.id)
    services.state.forget(generation_id)
    withdraw(services.redis, generation_id, generation.model)
    # No client can reach the files any more, and the janitor tries again.
    with contextlib.suppress(StorageUnavailable):
        services.storage.delete(generation_id)
        if generation.status is not Status.PROCESSING:  # then its worker may still write files
            services.state.files_removed(generation_id)
    return Response(status_code=202 if generation.status is Status.PROCESSING else 204)


@router.delete(
    "",
    response_model=Removed,
    responses={
        202: {"model": Removed, "description": f"After {DELETE_S} s some are left: send it again."},
        **problems(),
    },
)
def delete_all(response: Response, services: ServicesDep, caller: Maker) -> Removed:
    """Remove all generations of this API key, and their files."""
    removed, is_all = services.state.forget_all(caller.id, until=time.monotonic() + DELETE_S)
    if not is_all:
        response.status_code = 202
    return Removed(deleted=removed)


@router.get("/{generation_id}/audio/{n}", response_class=Response, responses=SOUND_RESPONSES)
def audio(
    generation_id: str,
    n: int,
    request: Request,
    services: ServicesDep,
    caller: Reader,
    output_format: FormatQuery = None,
) -> Response:
    """Return output n, or the part that a Range header requests.

    The format is `format`, else the one that Accept prefers, of equals the first requested one.
    """
    generation = succeeded(services, generation_id, caller, n=n)
    return sound(services, caller, generation, n, request, output_format=output_format)
