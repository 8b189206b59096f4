"""Route /v1/estimate: the estimated duration of a request that is not sent."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool

from app.dependencies import Maker, Services, ServicesDep
from app.requests.body import read_body, request_body
from app.requests.conditions import interpret, is_answering, understand
from app.requests.images import ReadImage, image_slot, read_images
from app.requests.submit import fields_sent, resolve, store_images
from app.requests.video import CopiedVideo, copied
from app.responses.problems import problems
from clipsynth.admission.limits import Reservation, forecast
from clipsynth.errors import ClipSynthError
from clipsynth.jobs.store import new_id
from clipsynth.schemas.generation import Estimate, JobPayload
from clipsynth.schemas.model_info import ServedModel
from clipsynth.schemas.request import GenerationRequest
from clipsynth.schemas.understanding import Understanding, Understood
from clipsynth.security.api_keys import ApiKey

router = APIRouter(tags=["generations"])


@router.post(
    "/v1/estimate",
    response_model=Estimate,
    openapi_extra={"requestBody": request_body()},
    responses=problems(
        "invalid_body",
        "unreadable_prompt",
        "model_not_found",
        "attribute_unavailable",
        "method_unavailable",
        "too_long",
        "video_undecodable",
        "video_too_large",
        "payload_too_large",
        "receive_timeout",
        "unsupported_media",
        "no_worker",
    ),
)
async def estimate(request: Request, services: ServicesDep, caller: Maker) -> Estimate:
    """Estimate the time until the end of a generation with this body, and how well the model knows it.

    Creates nothing. Images that cannot be read have no familiarity.
    """
    async with read_body(request, services, caller) as (wanted, files), contextlib.AsyncExitStack() as held:
        copying = copied(files, services.settings) if wanted.video else contextlib.nullcontext()
        video = await held.enter_async_context(copying)
        if wanted.has_images:
            await held.enter_async_context(image_slot(services, caller, wanted))
        return await run_in_threadpool(_estimate, services, caller, wanted, files, video)


def _estimate(
    services: Services,
    caller: ApiKey,
    wanted: GenerationRequest,
    files: Mapping[str, ReadImage],
    video: CopiedVideo | None,
) -> Estimate:
    model, own_id = services.state.model(wanted.model), new_id()
    parts, known = ([], []) if video else interpret(services, wanted, model)
    stored = video.stored if video else None
    payload = resolve(wanted, model, own_id, services.settings, stored, parts=parts)
    if not known and not video and is_answering(model):
        known = _understand(services, wanted, files, model, payload, own_id)
    found = Understanding.of(payload, known, wanted.prompt if parts else None)
    found.renamed(fields_sent(wanted))
    least = found.mark(payload.conditions)
    request = Reservation("", caller.id, model.name, payload.work(model))
    expected = forecast(services.redis, request, model.cost, payload.num_inference_steps)
    return Estimate(
        model=model.name,
        unfinished=expected.unfinished,
        p50_s=expected.p50_s,
        p90_s=expected.p90_s,
        familiarity=least.familiarity,
        understood_as=least.understood_as,
        prompts=payload.prompts,
        timeline=payload.timeline,
        warnings=found.warnings,
    )


def _understand(
    services: Services,
    wanted: GenerationRequest,
    files: Mapping[str, ReadImage],
    model: ServedModel,
    payload: JobPayload,
    own_id: str,
) -> list[Understood]:
    """Ask a worker; images are in storage meanwhile."""
    if not wanted.has_images:
        return understand(services, payload.conditions, model)
    with contextlib.suppress(ClipSynthError):
        try:
            store_images(services, own_id, payload, read_images(wanted, files, services.settings))
            return understand(services, payload.conditions, model)
        finally:
            services.storage.delete(own_id)
            services.state.files_removed(own_id)
    return []
