"""Routes of /v1/generations."""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import json
import math
import re
import secrets
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import StreamingResponse
from pydantic import ValidationError
from starlette.datastructures import FormData, UploadFile

from app.deps import Services, ServicesDep
from app.errors import problems
from app.files import file_response
from app.uploads import normalise_image
from clipsynth.errors import InvalidBody, InvalidRequest, NotFound, NotReady, UnsupportedMedia
from clipsynth.queue import enqueue, withdraw
from clipsynth.schemas import Generation, GenerationRequest, JobPayload, ModelInfo, Page, Status
from clipsynth.state import new_id
from clipsynth.storage import audio_key, image_key

router = APIRouter(prefix="/v1/generations", tags=["generations"])
MAX_WAIT_S = 60
KeyHeader = Annotated[str | None, Header(min_length=1, max_length=255)]
PreferHeader = Annotated[str | None, Header(description="wait=N, up to 60 s")]
LISTS = frozenset({"output_formats"})  # fields that a form repeats


SOUND = {"audio/wav": {"schema": {"type": "string", "format": "binary"}}}
SOUND_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"description": "the sound", "content": SOUND},
    206: {"description": "the asked part", "content": SOUND},
    304: {"description": "the client has it"},
    **problems("not_found", "gone", "not_ready", "range_not_satisfiable"),
}


def _request_body() -> dict[str, Any]:
    reference = {"$ref": "#/components/schemas/GenerationRequest"}
    form = GenerationRequest.model_json_schema()
    form["properties"]["image"] = {"type": "string", "format": "binary", "description": "PNG, JPEG or WebP"}
    content = {"application/json": {"schema": reference}, "multipart/form-data": {"schema": form}}
    return {"required": True, "content": content}


@router.post(
    "",
    status_code=202,
    response_model=Generation,
    openapi_extra={"requestBody": _request_body()},
    responses={
        200: {"model": Generation, "description": "with `Prefer: wait`: it has ended", "content": SOUND},
        **problems(
            "invalid_body",
            "model_not_found",
            "idempotency_mismatch",
            "image_undecodable",
            "payload_too_large",
            "image_too_large",
            "unsupported_media",
            "no_worker",
        ),
    },
)
async def create(
    request: Request,
    response: Response,
    services: ServicesDep,
    prefer: PreferHeader = None,
    idempotency_key: KeyHeader = None,
) -> Any:
    """Accept a request as JSON, or as multipart with the same field names and one picture as a file.

    The same `Idempotency-Key` and request again give the same generation. `Prefer: wait=10` waits as long for the end and then answers 200; with `Accept: audio/wav` by the sound itself.
    """
    wanted, picture = await _read(request)
    generation, replayed = await run_in_threadpool(accept, services, wanted, picture, idempotency_key)
    location = f"/v1/generations/{generation.id}"
    headers = {"Location": location, "Retry-After": "1"} | (
        {"Idempotent-Replayed": "true"} if replayed else {}
    )
    if wait_s := _wait_s(prefer):
        generation = await services.events.wait(generation, wait_s)
        if generation.finished_at is not None:
            headers["Preference-Applied"] = f"wait={wait_s}"
            del headers["Retry-After"]
            response.status_code = 200
            if generation.outputs and _accepts(request, generation.outputs[0].media_type):
                return await run_in_threadpool(_sound, services, generation, 0, request, headers)
    response.headers.update(headers)
    return generation


def _wait_s(prefer: str | None) -> int:
    """Return for how long a Prefer header (RFC 7240) asks to wait; 0 for not at all."""
    match = re.search(r"(?:^|[,;\s])wait=(\d{1,6})(?:$|[,;\s])", prefer or "")
    return min(int(match[1]), MAX_WAIT_S) if match else 0


def _accepts(request: Request, media_type: str) -> bool:
    accepted = request.headers.get("accept", "").split(",")
    return media_type in {part.partition(";")[0].strip().lower() for part in accepted}


@router.get(
    "/{generation_id}/events",
    response_class=StreamingResponse,
    responses={
        200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}},
        **problems("not_found", "gone"),
    },
)
async def events(
    generation_id: str,
    services: ServicesDep,
    last_event_id: Annotated[str | None, Header(max_length=100)] = None,
) -> StreamingResponse:
    """Follow a generation as server-sent events: `status`, `progress`, at last `completed`, each with the resource."""
    await run_in_threadpool(services.state.get, generation_id)
    stream = services.events.stream(generation_id, last_event_id)
    return StreamingResponse(
        stream,
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


@router.get("", response_model=Page, responses=problems())
def list_(
    services: ServicesDep,
    status: Status | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    cursor: Annotated[str | None, Query(max_length=200)] = None,
) -> Page:
    """List generations, the newest first."""
    before = _decode_cursor(cursor) if cursor else None
    found = services.state.page(status=status, before=before, limit=limit + 1)
    last = found[limit - 1] if len(found) > limit else None
    return Page(data=found[:limit], next_cursor=_encode_cursor(last) if last else None)


def _encode_cursor(generation: Generation) -> str:
    return base64.urlsafe_b64encode(f"{generation.created_at!r} {generation.id}".encode()).decode()


def _decode_cursor(cursor: str) -> tuple[float, str]:
    try:
        created_at, generation_id = base64.urlsafe_b64decode(cursor).decode().split()
        place = float(created_at)
    except ValueError:
        raise InvalidRequest("/cursor: not one that a page came with") from None
    if not math.isfinite(place):
        raise InvalidRequest("/cursor: not one that a page came with")
    return place, generation_id


@router.get("/{generation_id}", response_model=Generation, responses=problems("not_found", "gone"))
def get(generation_id: str, response: Response, services: ServicesDep) -> Generation:
    """Return a generation; while it is unfinished, with Retry-After."""
    generation = services.state.get(generation_id)
    if generation.finished_at is None:
        response.headers["Retry-After"] = "1"
    return generation


@router.post(
    "/{generation_id}/cancel",
    response_model=Generation,
    responses={
        202: {"model": Generation, "description": "a worker is at it"},
        **problems("not_found", "gone", "already_ended"),
    },
)
def cancel(generation_id: str, response: Response, services: ServicesDep) -> Generation:
    """Cancel: 200 where it was queued, 202 where a worker is at it and will stop at its next step."""
    if services.state.cancel(generation_id) is Status.PROCESSING:
        response.status_code = 202
    generation = services.state.get(generation_id)
    if generation.status is Status.CANCELED:
        withdraw(services.redis, generation_id, generation.model)
    return generation


@router.delete(
    "/{generation_id}",
    status_code=204,
    response_class=Response,
    responses={202: {"description": "a worker is at it"}, **problems("not_found", "gone")},
)
def delete(generation_id: str, services: ServicesDep) -> Response:
    """Forget a generation and its files; 202 where a worker is at it and will stop at its next step."""
    generation = services.state.get(generation_id)
    services.state.forget(generation_id)
    withdraw(services.redis, generation_id, generation.model)
    services.storage.delete(generation_id)
    return Response(status_code=202 if generation.status is Status.PROCESSING else 204)


@router.get("/{generation_id}/audio/{n}", response_class=Response, responses=SOUND_RESPONSES)
@router.head("/{generation_id}/audio/{n}", response_class=Response, include_in_schema=False)
def audio(generation_id: str, n: int, request: Request, services: ServicesDep) -> Response:
    """Return output n; whole, or the part that a Range header asks for."""
    generation = services.state.get(generation_id)
    if generation.status is not Status.SUCCEEDED:
        raise NotReady(f"the generation is {generation.status}; there is no sound")
    return _sound(services, generation, n, request)


def _sound(
    services: Services,
    generation: Generation,
    n: int,
    request: Request,
    headers: dict[str, str] | None = None,
) -> Response:
    output = next((o for o in generation.outputs if o.index == n), None)
    if output is None:
        raise NotFound(f"the generation has {generation.input.num_outputs} outputs, none is {n}")
    data = services.storage.get(audio_key(generation.id, n, output.format))
    disposition = f'inline; filename="{generation.id}-{n}.{output.format}"'
    response = file_response(request, data, media_type=output.media_type, disposition=disposition)
    response.headers.update(headers or {})
    return response


async def _read(request: Request) -> tuple[GenerationRequest, bytes | None]:
    """Return the request and the uploaded picture of a JSON or multipart body."""
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type == "application/json":
        return validate(_parse_json(await request.body()), strict=True), None
    if content_type == "multipart/form-data":
        async with request.form(max_files=1, max_fields=32) as form:
            return await _read_form(form)
    raise UnsupportedMedia(f"send application/json or multipart/form-data, not {content_type or 'nothing'}")


def validate(fields: dict[str, Any], *, strict: bool) -> GenerationRequest:
    try:
        return GenerationRequest.model_validate(fields, strict=strict)
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from None


def _parse_json(data: bytes) -> dict[str, Any]:
    try:
        body = json.loads(data, parse_constant=_no_constant, object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise InvalidBody(f"the body is not valid JSON: {error}") from None
    if not isinstance(body, dict):
        raise InvalidBody("the body must be a JSON object")
    return body


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({name for name, _ in pairs}) < len(pairs):
        raise ValueError("a name occurs twice in an object")
    return dict(pairs)


async def _read_form(form: FormData) -> tuple[GenerationRequest, bytes | None]:
    """Read fields as text. The picture is the only file, whatever its name; a field `image` may say `part:<name>`."""
    fields: dict[str, Any] = {}
    files: dict[str, bytes] = {}
    for name, value in form.multi_items():
        if isinstance(value, UploadFile):
            files[name] = await value.read()
        elif name in LISTS:
            fields.setdefault(name, []).append(value)
        elif name in fields:
            raise InvalidBody(f"/{name}: sent twice")
        else:
            fields[name] = value
    for name in files:
        if fields.setdefault("image", f"part:{name}") != f"part:{name}":
            raise InvalidRequest(f"/image: names another part than the file {name!r}")
    return validate(fields, strict=False), next(iter(files.values()), None)


def accept(
    services: Services, wanted: GenerationRequest, picture: bytes | None, key: str | None
) -> tuple[Generation, bool]:
    """Resolve, store the picture, and queue. What is acknowledged is on the queue.

    Returns:
        The generation, and whether it had been made before under the same idempotency key.
    """
    if picture is None and wanted.image is not None:
        try:
            picture = base64.b64decode(wanted.image, validate=True)
        except (binascii.Error, ValueError):
            raise InvalidRequest("/image: not base64") from None
    small = normalise_image(picture, services.settings) if picture is not None else None
    generation_id = new_id()
    if key is not None:
        request = wanted.model_dump_json(exclude={"image"}).encode()
        fingerprint = hashlib.sha256(request + b"\0" + (small or b"")).hexdigest()
        generation_id = services.state.claim_key(key, fingerprint, generation_id)
        with contextlib.suppress(
            NotFound
        ):  # it is new, or its first request was cut off before it was queued
            return services.state.get(generation_id), True
    payload = _resolve(
        wanted, services.state.model(wanted.model), image_key(generation_id) if small else None
    )
    if small is not None:
        payload.image_sha256 = hashlib.sha256(small).hexdigest()
    if small is not None:
        services.state.reserve(generation_id)
        services.storage.put(image_key(generation_id), small)
    enqueue(services.redis, services.state, generation_id, payload, services.settings)
    return services.state.get(generation_id), False


def _resolve(wanted: GenerationRequest, model: ModelInfo, key: str | None) -> JobPayload:
    """Fill in the bundle's defaults and a seed, and hold the bundle's limits."""
    payload = JobPayload(
        model=model.name,
        prompt=wanted.prompt,
        image_key=key,
        negative_prompt=wanted.negative_prompt,
        seed=secrets.randbelow(2**32) if wanted.seed is None else wanted.seed,
        num_inference_steps=wanted.num_inference_steps or model.num_inference_steps,
        guidance_scale=model.guidance_scale if wanted.guidance_scale is None else wanted.guidance_scale,
        duration_s=wanted.duration_s or model.duration_s,
        num_outputs=wanted.num_outputs,
        deadline_s=wanted.deadline_s,
        output_formats=wanted.output_formats,
    )
    if not model.min_duration_s <= payload.duration_s <= model.max_duration_s:
        raise InvalidRequest(
            f"/duration_s: model {model.name} makes {model.min_duration_s:g} to {model.max_duration_s:g} s, asked for {payload.duration_s:g}"
        )
    if payload.negative_prompt is not None and payload.guidance_scale <= 1:
        raise InvalidRequest("/negative_prompt: needs a guidance_scale above 1")
    return payload
