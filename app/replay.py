"""Route of /v1/replay: an output's recipe makes the same sound again."""

from __future__ import annotations

import hashlib

from fastapi import APIRouter, Response
from pydantic import BaseModel, ConfigDict, Field

from app.accept import accept
from app.auth import Maker
from app.bodies import validate
from app.deps import Services, ServicesDep
from app.errors import problems
from clipsynth.errors import InvalidRequest, NotFound, PictureGone, RecipeMismatch
from clipsynth.recipe import Recipe
from clipsynth.schemas import Generation

router = APIRouter(tags=["generations"])


class ReplayRequest(BaseModel):
    """Body of POST /v1/replay."""

    model_config = ConfigDict(extra="forbid")

    recipe: str = Field(max_length=20_000, description="of an output")


@router.post(
    "/v1/replay",
    status_code=202,
    response_model=Generation,
    responses=problems(
        "invalid_body",
        "model_not_found",
        "recipe_mismatch",
        "picture_gone",
        "payload_too_large",
        "receive_timeout",
        "rate_limited",
        "queue_full",
        "no_worker",
        "storage_unavailable",
    ),
)
def replay(body: ReplayRequest, response: Response, services: ServicesDep, caller: Maker) -> Generation:
    """Make the sound of a recipe again: the same to the byte alone on the same device, within 1e-4 in company."""
    recipe = Recipe.read(body.recipe)
    served = services.state.model(recipe.model)
    if served.version != recipe.version:
        raise RecipeMismatch(
            f"the recipe is of version {recipe.version} of {recipe.model}; served is {served.version}"
        )
    picture = _picture(services, recipe)
    fields = recipe.model_dump(
        include={
            "model",
            "prompt",
            "negative_prompt",
            "seed",
            "num_inference_steps",
            "guidance_scale",
            "duration_s",
        }
    )
    wanted = validate(fields | {"image": None if picture is None else "stored"}, strict=True)
    generation, _ = accept(services, caller, wanted, picture, None)
    response.headers.update({"Location": f"/v1/generations/{generation.id}", "Retry-After": "1"})
    return generation


def _picture(services: Services, recipe: Recipe) -> bytes | None:
    if recipe.image_key is None:
        return None
    try:
        picture = services.storage.get(recipe.image_key)
    except ValueError:
        raise InvalidRequest("/recipe: names no picture") from None
    except NotFound:
        picture = b""
    if hashlib.sha256(picture).hexdigest() != recipe.image_sha256:
        raise PictureGone("the picture of the recipe is not stored any more; send it with a new request")
    return picture
