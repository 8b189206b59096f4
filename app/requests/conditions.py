"""The conditions of a request: as a worker understands them, and as a payload holds them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from app.dependencies import Services
from app.requests.texts import readable
from clipsynth.admission.questions import ask
from clipsynth.errors import AttributeUnavailable
from clipsynth.schemas.model_info import ModelInfo, ServedModel
from clipsynth.schemas.prompt_parser import resolve_attributes
from clipsynth.schemas.prompts import MAX_TOTAL_S, StoredItem, StoredPrompt, WeightedPrompt
from clipsynth.schemas.request import GenerationRequest
from clipsynth.schemas.sentences import Part, fields_of_parts, may_be_several
from clipsynth.schemas.understanding import Understood
from clipsynth.settings import Settings
from clipsynth.storage import image_key

# Takes a text and its pointer.
ReadText = Callable[[str | None, str], str | None]


def interpret(
    services: Services, wanted: GenerationRequest, model: ServedModel
) -> tuple[list[Part], list[Understood]]:
    """Return the sounds that a plain prompt asks for, none if it is one, and how each condition is known.

    Without a separator in the prompt, and without an answer in time, both are empty.
    """
    text = wanted.prompt
    is_plain = wanted.interpret and wanted.method == "diffusion" and not wanted.has_images
    if text is None or not is_plain or not is_answering(model) or not may_be_several(text):
        return [], []
    text, avoided = readable(text, model, "/prompt"), wanted.negative_prompt
    texts = [] if avoided is None else [readable(avoided, model, "/negative_prompt")]
    found = ask(services.redis, model.name, texts=texts, images=[], split=text)
    if found is None:
        return [], []
    known = found.texts[len(texts) :] + found.texts[: len(texts)]
    orders = found.orders or ["together"] * len(found.parts)
    parts = [Part(*part) for part in zip(found.parts, orders, strict=True)]
    return parts if len(parts) > 1 else [], known


def understand(
    services: Services, conditions: Sequence[StoredPrompt], model: ServedModel
) -> list[Understood]:
    """Return how well the model knows each condition; empty without an answer in time."""
    if not is_answering(model):
        return []
    texts = [condition.text for condition in conditions if condition.text is not None]
    images = [condition.image_key for condition in conditions if condition.image_key is not None]
    found = ask(services.redis, model.name, texts=texts, images=images)
    if found is None or (len(found.texts), len(found.images)) != (len(texts), len(images)):
        return []
    known = iter(found.texts), iter(found.images)
    return [next(known[condition.text is None]) for condition in conditions]


def is_answering(model: ServedModel) -> bool:
    """Return whether the model's workers answer questions."""
    return model.status == "ready" and bool(model.sounds)


# ------------------------------------------------------------------------------------------------ in payloads


def stored_parts(
    parts: Sequence[Part],
    wanted: GenerationRequest,
    requested: Mapping[str, float] | None,
    model: ModelInfo,
    settings: Settings,
) -> dict[str, Any]:
    """Return the fields of the payload for the sounds of a sentence; `requested` are attributes of all."""
    longest_s = min(max(settings.max_duration_s, model.window_s or 0), MAX_TOTAL_S / wanted.num_outputs)
    return fields_of_parts(
        parts,
        requested,
        model.attributes,
        composition=wanted.composition if "composition" in wanted.model_fields_set else None,
        duration_s=wanted.duration_s,
        default_s=model.duration_s,
        # A model without windows, which an older worker serves, makes no timelines.
        longest_s=longest_s if model.window_s else 0.0,
    )


def stored_prompts(
    prompts: Sequence[WeightedPrompt], model: ModelInfo, generation_id: str, read: ReadText
) -> list[StoredPrompt]:
    """Return the prompts for the payload."""
    return [
        StoredPrompt(
            text=read(item.text, f"/prompts/{n}/text"),
            image_key=image_key(generation_id, n) if item.is_image else None,
            weight=item.weight,
            attributes=_own_attributes(item, f"/prompts/{n}", model),
        )
        for n, item in enumerate(prompts)
    ]


def stored_timeline(
    wanted: GenerationRequest,
    model: ModelInfo,
    generation_id: str,
    read: ReadText,
) -> list[StoredItem]:
    """Return the timeline for the payload, with times in whole milliseconds."""
    found = []
    for n, item in enumerate(wanted.timeline or ()):
        found.append(
            StoredItem(
                text=read(item.text, f"/timeline/{n}/text"),
                image_key=image_key(generation_id, sum(o.is_image for o in wanted.items[:n]))
                if item.is_image
                else None,
                weight=item.weight,
                start_s=round(item.start_s, 3),
                end_s=round(item.end_s, 3),
                attributes=_own_attributes(item, f"/timeline/{n}", model),
                fade_s=item.fade_s,
            )
        )
    return found


def _own_attributes(item: WeightedPrompt, pointer: str, model: ModelInfo) -> dict[str, float]:
    asked = item.attributes.model_dump(exclude_none=True)
    try:
        return resolve_attributes(None, asked, model.attributes, model=model.name)[1]
    except AttributeUnavailable as error:
        raise AttributeUnavailable(f"{pointer}{error}") from None
