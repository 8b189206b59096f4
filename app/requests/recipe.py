"""Requests from recipes: the same sound again, a variation of an output, or its continuation."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

from fastapi.exceptions import RequestValidationError

from app.dependencies import Services
from app.requests.body import validate
from app.requests.images import PART, ReadImage
from app.responses.audio import succeeded
from clipsynth.errors import (
    ClipSynthError,
    Gone,
    ImageGone,
    InvalidRequest,
    MethodUnavailable,
    NotFound,
    RecipeMismatch,
)
from clipsynth.schemas.generation import Format, ReplayToken
from clipsynth.schemas.prompts import (
    MIN_DURATION_S,
    Attributes,
    StoredParent,
    StoredPrompt,
    TimelineItem,
    WeightedPrompt,
)
from clipsynth.schemas.request import REPLAY, GenerationRequest
from clipsynth.security.api_keys import ApiKey
from clipsynth.storage import audio_key, is_image_key, is_parent_key

# The format of a parent that is heard: without loss first.
BEST: tuple[Format, ...] = ("wav_float", "wav_24", "wav", "flac", "ogg", "mp3")
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


@dataclass(frozen=True)
class ParentSound:
    """The output that a request varies or continues; `read` reads its sound, at the key in `stored`."""

    stored: StoredParent
    read: Callable[[], bytes]


@dataclass(frozen=True)
class Remake:
    """A request from a recipe: images by name, parent and precision. No file is read before admission."""

    wanted: GenerationRequest
    files: Mapping[str, ReadImage] = field(default_factory=dict)
    parent: ParentSound | None = None
    precision: str | None = None


def variation(
    services: Services,
    caller: ApiKey,
    generation_id: str,
    output: int,
    *,
    seed: int | None,
    num_outputs: int,
    strength: float,
) -> Remake:
    """Return the request of variations of an output.

    Raises:
        NotFound, Gone, NotReady: as `succeeded`.
        MethodUnavailable: it was retrieved.
        RecipeMismatch: the service has another version of its model.
    """
    how = {"strength": strength}
    return _of_output(services, caller, generation_id, output, how, seed=seed, num_outputs=num_outputs)


def continuation(
    services: Services,
    caller: ApiKey,
    generation_id: str,
    output: int,
    *,
    seed: int | None,
    extend_s: float,
) -> Remake:
    """Return the request of a longer sound.

    A timeline continues with the items at its end.

    Raises:
        NotFound, Gone, NotReady, MethodUnavailable, RecipeMismatch: as `variation`.
        InvalidRequest: nothing sounds at the end of its timeline.
    """
    remade = _of_output(services, caller, generation_id, output, {"extend_s": extend_s}, seed=seed)
    wanted, generation = remade.wanted, succeeded(services, generation_id, caller)
    [length_s, *_] = [made.duration_s for made in generation.outputs if made.index == output]
    changes: dict[str, object] = {"loop": False, "duration_s": round(length_s + extend_s, 3)}
    files = remade.files
    if wanted.timeline is not None:
        last = [item for item in wanted.timeline if item.end_s >= (wanted.duration_s or 0.0) - 1e-3]
        if not last:
            raise InvalidRequest("/output: nothing sounds at the end of its timeline")
        changes |= {"timeline": None, "prompts": [_without_times(item) for item in last]}
        changes["attributes"] = _joint(last, wanted.attributes or Attributes())
        named = {item.image for item in last}
        files = {name: read for name, read in files.items() if PART + name in named}
    return Remake(wanted.model_copy(update=changes), files, remade.parent)


def _without_times(item: TimelineItem) -> WeightedPrompt:
    return WeightedPrompt(text=item.text, image=item.image, weight=item.weight)


def _joint(items: list[TimelineItem], own: Attributes) -> Attributes:
    """Return the attributes of a set: those of the request, or the mean over its items by weight."""
    found = own.model_dump(exclude_none=True)
    for name in Attributes.model_fields:
        named = [(i.weight, v) for i in items if (v := getattr(i.attributes, name)) is not None]
        if named:
            found[name] = sum(w * v for w, v in named) / sum(w for w, _ in named)
    return Attributes(**found)


def _of_output(
    services: Services,
    caller: ApiKey,
    generation_id: str,
    n: int,
    how: Mapping[str, float],
    *,
    seed: int | None,
    num_outputs: int = 1,
) -> Remake:
    """Return the request that made an output, with another seed, and the output as its parent."""
    generation = succeeded(services, generation_id, caller, n=n)
    outputs = [output for output in generation.outputs if output.index == n]
    if generation.input.method == "retrieval" or not outputs[0].recipe:
        raise MethodUnavailable("/output: a retrieved sound has no variations and no continuation")
    best = min((output.format for output in outputs), key=BEST.index)
    key = audio_key(generation.folder, n, best)
    remade = of_recipe(services, outputs[0].recipe)
    changes = {
        "seed": seed,
        "num_outputs": num_outputs,
        "output_formats": generation.input.output_formats,
    }
    stored = StoredParent(id=generation_id, output=n, audio_key=key, **how)
    parent = ParentSound(stored, partial(_sound, services, key, None))
    return Remake(remade.wanted.model_copy(update=changes), remade.files, parent)


def of_recipe(services: Services, token: str) -> Remake:
    """Return the request of a recipe.

    Raises:
        InvalidRequest: it is no recipe.
        RecipeMismatch: the service has another version of its model.
    """
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
    parent = None
    if recipe.parent is not None:
        if not is_parent_key(recipe.parent.audio_key):
            raise InvalidRequest("/recipe: audio_key is not the key of a parent")
        # Times are rounded to milliseconds.
        if recipe.duration_s - (recipe.parent.extend_s or 0) < MIN_DURATION_S - 1e-2:
            raise InvalidRequest("/recipe: it extends a parent that is too short")
        parent = ParentSound(
            recipe.parent,
            partial(_sound, services, recipe.parent.audio_key, recipe.parent.audio_sha256),
        )
    try:
        wanted = validate(GenerationRequest, fields, strict=True, context=REPLAY)
    except RequestValidationError as error:
        raise InvalidRequest(f"/recipe: {error.errors()[0]['msg']}") from None
    return Remake(wanted, files, parent, recipe.dtype)


def _prompt(services: Services, item: StoredPrompt, files: dict[str, ReadImage]) -> dict[str, object]:
    """Return an item as a client sends it; add its image to `files`."""
    content: dict[str, object] = {"text": item.text}
    if item.image_key is not None:
        if not is_image_key(item.image_key):
            raise InvalidRequest("/recipe: image_key is not the key of an image")
        name = str(len(files))
        files[name] = partial(_image, services, item.image_key, item.image_sha256)
        content["image"] = PART + name
    return content | {"weight": item.weight, "attributes": item.attributes}


def _image(services: Services, key: str, sha256: str | None) -> bytes:
    error = ImageGone("the image of the recipe was removed; send it with a new request")
    return _stored(services, key, error, sha256 or "")


def _sound(services: Services, key: str, sha256: str | None) -> bytes:
    return _stored(services, key, Gone("the sound of the parent was removed"), sha256)


def _stored(services: Services, key: str, error: ClipSynthError, sha256: str | None) -> bytes:
    """Return a stored file; raise `error` if it is not there, or has not this hash."""
    try:
        data = services.storage.get(key)
    except NotFound:
        raise error from None
    if sha256 not in (None, hashlib.sha256(data).hexdigest()):
        raise error
    return data
