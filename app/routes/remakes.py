"""Routes that start from an output: its recipe (replay token), /v1/replay, variations, continuations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, ConfigDict, Field

from app.dependencies import KeyHeader, Maker, Reader, Services, ServicesDep
from app.requests.body import json_body, read_json
from app.requests.images import image_slot
from app.requests.recipe import Remake, continuation, of_recipe, variation
from app.requests.submit import accept, repeated
from app.responses.audio import succeeded
from app.responses.problems import problems
from clipsynth.errors import naming
from clipsynth.schemas.generation import Generation, ReplayToken
from clipsynth.schemas.prompts import MIN_DURATION_S
from clipsynth.security.api_keys import ApiKey

router = APIRouter(tags=["generations"])
PROBLEMS = (
    "not_found",
    "gone",
    "not_ready",
    "idempotency_mismatch",
    "invalid_body",
    "model_not_found",
    "attribute_unavailable",
    "method_unavailable",
    "too_long",
    "payload_too_large",
    "receive_timeout",
    "unsupported_media",
    "recipe_mismatch",
    "image_gone",
    "rate_limited",
    "kept_quota",
    "queue_full",
    "no_worker",
    "storage_unavailable",
    "storage_full",
)


class ReplayRequest(BaseModel):
    """Body of POST /v1/replay."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"recipe": "eyJ2IjoxLCJtb2RlbCI6…"}]}
    )

    recipe: str = Field(max_length=100_000, description="`recipe` of an output.")


class VariationRequest(BaseModel):
    """Body of POST /v1/generations/{id}/variations."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"strength": 0.4}]})

    output: int = Field(default=0, ge=0, le=7, description="Number of the output.")
    strength: float = Field(
        default=0.5, ge=0, le=1, allow_inf_nan=False, description="How far to go from the output."
    )
    seed: int | None = Field(default=None, ge=0, lt=2**32, description="Seed; variation n has seed + n.")
    num_outputs: int = Field(default=1, ge=1, le=8, description="Number of variations.")


class ContinuationRequest(BaseModel):
    """Body of POST /v1/generations/{id}/continuations."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"extend_s": 4}]})

    output: int = Field(default=0, ge=0, le=7, description="Number of the output.")
    extend_s: float = Field(ge=MIN_DURATION_S, allow_inf_nan=False, description="Seconds to add.")
    seed: int | None = Field(default=None, ge=0, lt=2**32, description="Seed of the new part.")


class OutputRecipe(BaseModel):
    """Recipe of output `index`, as a token for replay and decoded."""

    index: int
    id: str = Field(description="Id of the recipe, also in the metadata of the sound's files.")
    token: str
    recipe: ReplayToken


class Recipes(BaseModel):
    """Recipes of the outputs of a generation."""

    data: list[OutputRecipe]


@router.get(
    "/v1/generations/{generation_id}/recipe",
    response_model=Recipes,
    responses=problems("not_found", "gone", "not_ready"),
)
def recipes(generation_id: str, services: ServicesDep, caller: Reader) -> Recipes:
    """Return the recipe of each output."""
    outputs = succeeded(services, generation_id, caller).outputs
    tokens = {output.index: output.recipe for output in outputs if output.recipe}
    return Recipes(
        data=[
            OutputRecipe(index=n, id=(recipe := ReplayToken.read(token)).id, token=token, recipe=recipe)
            for n, token in tokens.items()
        ]
    )


@router.post(
    "/v1/replay",
    status_code=202,
    response_model=Generation,
    openapi_extra={"requestBody": json_body(ReplayRequest)},
    responses=problems(*PROBLEMS),
)
async def replay(request: Request, response: Response, services: ServicesDep, caller: Maker) -> Generation:
    """Generate the sound of a recipe again.

    On the same device it is equal byte for byte if it runs alone, and within 2e-3 of full scale in a batch.
    """
    body = await read_json(request, services, caller, ReplayRequest)
    make = partial(of_recipe, services, body.recipe)
    return await _accept(services, caller, response, make, {"": "/recipe"})


@router.post(
    "/v1/generations/{generation_id}/variations",
    status_code=202,
    response_model=Generation,
    openapi_extra={"requestBody": json_body(VariationRequest)},
    responses=problems(*PROBLEMS),
)
async def vary(
    generation_id: str,
    request: Request,
    response: Response,
    services: ServicesDep,
    caller: Maker,
    idempotency_key: KeyHeader = None,
) -> Generation:
    """Generate variations of an output (SDEdit). Strength 0 is its sound, 1 a new one of the same prompt."""
    body = await read_json(request, services, caller, VariationRequest)
    make = partial(variation, services, caller, generation_id, **body.model_dump())
    sent = f"{generation_id}/variations {body.model_dump_json()}"
    fields = {"/output": "/output", "/num_outputs": "/num_outputs", "": ""}
    return await _accept(services, caller, response, make, fields, idempotency_key, sent)


@router.post(
    "/v1/generations/{generation_id}/continuations",
    status_code=202,
    response_model=Generation,
    openapi_extra={"requestBody": json_body(ContinuationRequest)},
    responses=problems(*PROBLEMS),
)
async def continue_(
    generation_id: str,
    request: Request,
    response: Response,
    services: ServicesDep,
    caller: Maker,
    idempotency_key: KeyHeader = None,
) -> Generation:
    """Generate a longer sound that begins with an output. Its last 0.5 s may change."""
    body = await read_json(request, services, caller, ContinuationRequest)
    make = partial(continuation, services, caller, generation_id, **body.model_dump())
    sent = f"{generation_id}/continuations {body.model_dump_json()}"
    fields = {"/output": "/output", "/duration_s": "/extend_s", "": ""}
    return await _accept(services, caller, response, make, fields, idempotency_key, sent)


async def _accept(
    services: Services,
    caller: ApiKey,
    response: Response,
    make: Callable[[], Remake],
    fields: Mapping[str, str],
    idempotency_key: str | None = None,
    sent: str = "",
) -> Generation:
    """Submit the request that `make` returns, or return the earlier one with this idempotency key.

    Args:
        fields: names of the body's fields, as of `naming`.
    """
    earlier = None
    # Before `make`, whose parent may be gone by now.
    if idempotency_key is not None:
        earlier = await run_in_threadpool(repeated, services, caller, idempotency_key, sent)
    if earlier is not None:
        generation, is_repeated = earlier, True
    else:
        with naming(fields):
            remade = await run_in_threadpool(make)
            own = partial(accept, parent=remade.parent, is_replay=True, sent=sent, sent_as=fields)
            async with image_slot(services, caller, remade.wanted):
                arguments = services, caller, remade.wanted, remade.files, idempotency_key
                generation, is_repeated = await run_in_threadpool(
                    partial(own, precision=remade.precision), *arguments
                )
    response.headers.update({"Location": generation.links["self"], "Retry-After": "1"})
    if is_repeated:
        response.headers["Idempotent-Replayed"] = "true"
    return generation
