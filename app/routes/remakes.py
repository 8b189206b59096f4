"""Routes of recipes (replay tokens): the recipes of a generation, and /v1/replay."""

from __future__ import annotations

import hashlib
from functools import partial

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, ConfigDict, Field

from app.dependencies import Maker, Reader, Services, ServicesDep
from app.requests.body import json_body, read_json, validate
from app.requests.images import PART, ReadImage, image_slot
from app.requests.submit import accept
from app.responses.audio import succeeded
from app.responses.problems import problems
from clipsynth.errors import ImageGone, InvalidRequest, NotFound, RecipeMismatch
from clipsynth.schemas.generation import Generation, ReplayToken
from clipsynth.schemas.prompts import StoredPrompt
from clipsynth.schemas.request import REPLAY, GenerationRequest
from clipsynth.storage import is_image_key

router = APIRouter(tags=["generations"])
KEPT = {
    "model",
    "prompt",
    "composition",
    "negative_prompt",
    "attributes",  # {} for none: then the words of the prompt are not read
    "method",
    "rank",
    "seed",
    "num_inference_steps",
    "guidance_scale",
    "duration_s",
    "loop",
}


TIMES = {"start_s", "end_s", "attributes", "fade_s"}


class ReplayRequest(BaseModel):
    """Body of POST /v1/replay."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"recipe": "eyJ2IjoxLCJtb2RlbCI6…"}]}
    )

    recipe: str = Field(max_length=100_000, description="`recipe` of an output.")


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
    responses=problems(
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
    ),
)
async def replay(request: Request, response: Response, services: ServicesDep, caller: Maker) -> Generation:
    """Generate the sound of a recipe again.

    On the same device it is equal byte for byte if it runs alone, and within 2e-3 of full scale in a batch.
    """
    body = await read_json(request, services, caller, ReplayRequest)
    wanted, files = await run_in_threadpool(_wanted, services, body.recipe)
    async with image_slot(services, caller, wanted):
        generation = (await run_in_threadpool(accept, services, caller, wanted, files, None, is_replay=True))[
            0
        ]
    response.headers.update({"Location": generation.links["self"], "Retry-After": "1"})
    return generation


def _wanted(services: Services, token: str) -> tuple[GenerationRequest, dict[str, ReadImage]]:
    """Return the request of a recipe, and its images by name; none is read before admission."""
    recipe = ReplayToken.read(token)
    served = services.state.model(recipe.model)
    if served.version != recipe.version:
        raise RecipeMismatch(
            f"the recipe has version {recipe.version} of {recipe.model}; the service has {served.version}"
        )
    files: dict[str, ReadImage] = {}
    fields = recipe.model_dump(include=KEPT)
    if recipe.prompts is not None:
        fields["prompts"] = [_prompt(services, item, files) for item in recipe.prompts]
    if recipe.timeline is not None:
        fields["timeline"] = [
            _prompt(services, item, files) | item.model_dump(include=TIMES) for item in recipe.timeline
        ]
    if recipe.image_key is not None:
        image = StoredPrompt(image_key=recipe.image_key, image_sha256=recipe.image_sha256)
        fields["image"] = _prompt(services, image, files)["image"]
    return validate(GenerationRequest, fields, strict=True, context=REPLAY), files


def _prompt(services: Services, item: StoredPrompt, files: dict[str, ReadImage]) -> dict[str, object]:
    """Return an item as a client sends it; add its image to `files`."""
    content: dict[str, object] = {"text": item.text}
    if item.image_key is not None:
        if not is_image_key(item.image_key):
            raise InvalidRequest("/recipe: image_key is not the key of an image")
        name = str(len(files))
        files[name] = partial(_image, services, item.image_key, item.image_sha256)
        content["image"] = PART + name
    return content | {"weight": item.weight}


def _image(services: Services, key: str, sha256: str | None) -> bytes:
    try:
        image = services.storage.get(key)
    except NotFound:
        image = b""
    if hashlib.sha256(image).hexdigest() != sha256:
        raise ImageGone("the image of the recipe was removed; send it with a new request")
    return image
