"""Weighted prompts: how a client writes a set of texts and images, and how it is kept. The order of a set means nothing."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

MAX_PROMPTS = 8
MAX_IMAGES = 4
MAX_TEXT = 1000
MAX_WEIGHT, MIN_WEIGHT = 10.0, 0.01  # of its magnitude
MAX_URL = 2000
MAX_GUIDANCE = 20.0
MIN_DURATION_S, MAX_DURATION_S = 0.5, 10.0  # that may be asked for; a bundle's own limits are narrower
Composition = Annotated[
    Literal["set", "compose", "mix"],
    Field(
        description="how what is wanted comes together. set: the network sees all of it at once. compose: each thing guides the one sound, by its "
        "weight. mix: each makes a sound of its own, and those are mixed, as loud as their weights. "
        "The latter two cost more with each thing"
    ),
]

_WEIGHT_SCHEMA = {"not": {"exclusiveMinimum": -MIN_WEIGHT, "exclusiveMaximum": MIN_WEIGHT}}
Weight = Annotated[
    float,
    Field(
        ge=-MAX_WEIGHT,
        le=MAX_WEIGHT,
        allow_inf_nan=False,
        json_schema_extra=_WEIGHT_SCHEMA,
        description=f"1 is as trained, more is stronger; below 0 the sound is led away from it. At least {MIN_WEIGHT} in magnitude",
    ),
]
ImageUrl = Annotated[
    str, Field(max_length=MAX_URL, description="an https URL of an image, where this service fetches them")
]
IMAGE = "a PNG, JPEG or WebP in base64 or as a data URL; in a form `part:<name>`, the name of a file in it"


def not_blank(text: str | None) -> str | None:
    if text is not None and not text.strip():
        raise ValueError("must not be blank")
    return text


class WeightedPrompt(BaseModel):
    """One text or image of a set, and how much of it is wanted."""

    model_config = ConfigDict(extra="forbid")

    text: str | None = Field(default=None, max_length=MAX_TEXT)
    image: str | None = Field(default=None, description=IMAGE)
    image_url: ImageUrl | None = None
    weight: Weight = 1.0

    _text_not_blank = field_validator("text")(not_blank)

    @field_validator("weight")
    @classmethod
    def _not_zero(cls, value: float) -> float:
        if abs(value) < MIN_WEIGHT:
            raise ValueError(f"must be at least {MIN_WEIGHT} in magnitude")
        return value

    @model_validator(mode="after")
    def _is_one_thing(self) -> WeightedPrompt:
        if sum(content is not None for content in (self.text, self.image, self.image_url)) != 1:
            raise ValueError("one of text, image and image_url is needed")
        return self

    @property
    def is_image(self) -> bool:
        return self.text is None


def check_set(prompts: list[WeightedPrompt] | None) -> list[WeightedPrompt] | None:
    """Raise ValueError where the items do not make a set together."""
    if prompts is not None and all(prompt.weight < 0 for prompt in prompts):
        raise ValueError("at least one weight must be positive")
    if sum(prompt.is_image for prompt in prompts or ()) > MAX_IMAGES:
        raise ValueError(f"at most {MAX_IMAGES} images")
    return prompts


class StoredPrompt(BaseModel):
    """One text or image of a set as jobs and recipes have it; `image_key` names an image in storage."""

    model_config = ConfigDict(extra="forbid")

    text: str | None = None
    image_key: str | None = None
    image_sha256: str | None = None
    weight: float = 1.0

    @property
    def place(self) -> tuple[str, str, float]:
        """What sets are sorted by where two with the same items must be equal."""
        return self.text or "", self.image_sha256 or "", self.weight


def as_set(
    *,
    prompt: str | None,
    prompts: list[StoredPrompt] | None,
    negative_prompt: str | None,
    image_key: str | None,
    image_sha256: str | None,
) -> list[StoredPrompt]:
    """Return all that a job or recipe asks for as one set: text and image have weight 1, the negative prompt -1."""
    items = list(prompts or [])
    if prompt is not None:
        items.append(StoredPrompt(text=prompt))
    if image_key is not None:
        items.append(StoredPrompt(image_key=image_key, image_sha256=image_sha256))
    if negative_prompt is not None:
        items.append(StoredPrompt(text=negative_prompt, weight=-1.0))
    return items
