"""Route /v1/estimate: the estimated duration of a request that is not sent."""

from __future__ import annotations

import contextlib

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool

from app.dependencies import Maker, Services, ServicesDep
from app.requests.body import read_body, request_body
from app.requests.submit import resolve
from app.requests.video import CopiedVideo, copied
from app.responses.problems import problems
from clipsynth.admission.limits import Reservation, forecast
from clipsynth.jobs.store import new_id
from clipsynth.schemas.generation import Estimate
from clipsynth.schemas.request import GenerationRequest
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
    """Estimate the time until the end of a generation with this body. Creates nothing and reads no images."""
    async with read_body(request, services, caller) as (wanted, files):
        copying = copied(files, services.settings) if wanted.video else contextlib.nullcontext()
        async with copying as video:
            return await run_in_threadpool(_estimate, services, caller, wanted, video)


def _estimate(
    services: Services, caller: ApiKey, wanted: GenerationRequest, video: CopiedVideo | None
) -> Estimate:
    model = services.state.model(wanted.model)
    payload = resolve(wanted, model, new_id(), services.settings, video.stored if video else None)
    request = Reservation("", caller.id, model.name, payload.work(model))
    expected = forecast(services.redis, request, model.cost, payload.num_inference_steps)
    return Estimate(
        model=model.name, unfinished=expected.unfinished, p50_s=expected.p50_s, p90_s=expected.p90_s
    )
