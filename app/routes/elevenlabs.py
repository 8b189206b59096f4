"""Route /v1/sound-generation: ElevenLabs' sound effects API on top of ordinary generations."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, cast, get_args

from fastapi import APIRouter, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, ConfigDict, Field

from app.dependencies import Services, ServicesDep, ShimMaker
from app.requests.body import json_body, read_json, validate
from app.requests.submit import accept, cancel_generation
from app.responses.audio import SOUND, sound
from app.responses.problems import problems
from clipsynth.errors import GenerationFailed, NotInTime, naming
from clipsynth.schemas.generation import Format, Generation, Status
from clipsynth.schemas.prompts import MAX_GUIDANCE, MAX_TEXT, MIN_DURATION_S
from clipsynth.schemas.request import GenerationRequest
from clipsynth.security.api_keys import ApiKey

router = APIRouter(tags=["compatibility"])
WAIT_S = 60
# Status in logs and metrics, as nginx has it.
CLIENT_LEFT = 499
NEUTRAL_INFLUENCE = 0.3  # ElevenLabs' default; here it means the bundle's guidance_scale
FOREIGN_MODELS = "eleven_"
# Formats of the API, and ElevenLabs' names. Only the codec counts: the model sets the sample rate and
# libsndfile the bit rate.
OUTPUT_FORMATS = rf"^({'|'.join(get_args(Format))}|wav_\d{{4,5}}|mp3_\d{{4,5}}_\d{{2,3}})$"
# Fields of a generation, as errors name them, and the fields of this route.
FIELDS = {
    "/prompt": "/text",
    "/duration_s": "/duration_seconds",
    "/guidance_scale": "/prompt_influence",
    "/deadline_s": "",
}


class SoundGenerationRequest(BaseModel):
    """Body of POST /v1/sound-generation."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"text": "a dog barking", "duration_seconds": 2}]}
    )

    text: str = Field(min_length=1, max_length=MAX_TEXT, pattern=r"\S")
    duration_seconds: float | None = Field(default=None, ge=MIN_DURATION_S, allow_inf_nan=False)
    prompt_influence: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="guidance: 0 is none, 0.3 the model's default, linear up to 20",
    )
    model_id: str | None = Field(
        default=None, max_length=40, description="a model served here; ElevenLabs' names mean the first one"
    )
    loop: bool | None = Field(default=None, description="whether the end continues at the beginning")


def guidance_scale(prompt_influence: float, own: float) -> float:
    """Return the guidance_scale on the line through (0, 1) = off and (0.3, the bundle's own), at most 20."""
    return min(MAX_GUIDANCE, 1 + (own - 1) * prompt_influence / NEUTRAL_INFLUENCE)


@router.post(
    "/v1/sound-generation",
    response_class=Response,
    openapi_extra={"requestBody": json_body(SoundGenerationRequest)},
    responses={
        200: {"description": "the sound; `Generation-Id` names its generation", "content": SOUND},
        **problems(
            "invalid_body",
            "unreadable_prompt",
            "model_not_found",
            "too_long",
            "gone",
            "payload_too_large",
            "unsupported_media",
            "deadline_unreachable",
            "rate_limited",
            "kept_quota",
            "queue_full",
            "generation_failed",
            "no_worker",
            "not_in_time",
            "receive_timeout",
            "storage_unavailable",
            "storage_full",
        ),
    },
)
async def sound_generation(
    request: Request,
    services: ServicesDep,
    caller: ShimMaker,
    output_format: Annotated[str, Query(pattern=OUTPUT_FORMATS)] = "mp3_44100_128",
) -> Response:
    """Generate a sound and return it, within 60 s. The API key may also come as `xi-api-key`.

    A client that leaves cancels the generation.
    """
    body = await read_json(request, services, caller, SoundGenerationRequest)
    is_own = output_format in get_args(Format)
    file_format = cast(Format, output_format if is_own else output_format.partition("_")[0])
    began = time.monotonic()
    generation = await run_in_threadpool(_accept, services, caller, body, file_format)
    waiting = asyncio.ensure_future(services.events.wait(generation, WAIT_S, made_after=began))
    leaving = asyncio.ensure_future(_has_left(request))
    try:
        await asyncio.wait([waiting, leaving], return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            await run_in_threadpool(cancel_generation, services, generation.id)
            return Response(status_code=CLIENT_LEFT)
        generation = await waiting
    finally:
        waiting.cancel()
        leaving.cancel()
    if generation.status is not Status.SUCCEEDED:
        why = generation.error.detail if generation.error else f"it is {generation.status}"
        failed = generation.status in (Status.FAILED, Status.CANCELED)
        raise (GenerationFailed if failed else NotInTime)(f"generation {generation.id}: {why}")
    headers = {"Generation-Id": generation.id, "Cache-Control": "no-store"}
    return await run_in_threadpool(
        sound, services, caller, generation, 0, request, output_format=file_format, headers=headers
    )


async def _has_left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _accept(
    services: Services, caller: ApiKey, body: SoundGenerationRequest, file_format: Format
) -> Generation:
    is_foreign = body.model_id is None or body.model_id.startswith(FOREIGN_MODELS)
    model = services.state.model(None if is_foreign else body.model_id)
    fields = {
        "prompt": body.text,
        "model": model.name,
        "duration_s": body.duration_seconds,
        "loop": body.loop or False,
        "output_formats": [file_format],
        "deadline_s": float(WAIT_S),  # the client cannot fetch it later
    }
    if body.prompt_influence is not None:
        fields["guidance_scale"] = guidance_scale(body.prompt_influence, model.guidance_scale)
    wanted = validate(GenerationRequest, fields, strict=True)
    with naming(FIELDS):
        return accept(services, caller, wanted, {}, None, sent_as=FIELDS)[0]
