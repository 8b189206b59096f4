"""Weighted prompts and attributes in a request, and their limits. A set of prompts has no order."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

# Prompts of a set, and items of a timeline at one moment.
MAX_PROMPTS = 8
MAX_IMAGES = 4
MAX_ITEMS, MIN_ITEM_S, MAX_FADE_S = 32, 0.1, 5.0
MAX_TEXT = 1000
# Limits of a weight's magnitude.
MAX_WEIGHT, MIN_WEIGHT = 10.0, 0.01
MAX_URL = 2000
MAX_GUIDANCE = 20.0
# Shortest sound; the longest one is a setting. All sounds of a request together have at most 120 s.
MIN_DURATION_S, MAX_TOTAL_S = 0.5, 120.0


def _no_data_url(value: object) -> object:
    if isinstance(value, str) and value[:5].lower() == "data:":
        raise ValueError(NO_DATA_URL)
    return value


Composition = Annotated[
    Literal["set", "compose", "mix"],
    Field(
        description="How several prompts make one sound. set: the network reads all of them at once. "
        "compose: each prompt guides the same sound, by its weight. mix: each prompt makes its own sound, "
        "and these are mixed, as loud as their weights. compose and mix cost more with each prompt."
    ),
]
# Of the sounds of a sentence (docs/decisions/model.md).
OF_PARTS: Composition = "mix"
Weight = Annotated[
    float,
    Field(
        ge=-MAX_WEIGHT,
        le=MAX_WEIGHT,
        allow_inf_nan=False,
        json_schema_extra={"not": {"exclusiveMinimum": -MIN_WEIGHT, "exclusiveMaximum": MIN_WEIGHT}},
        description="1 is the strength used in training. More than 1 is stronger; below 0 steers the sound "
        f"away from this prompt. The magnitude is at least {MIN_WEIGHT}.",
    ),
]
NO_DATA_URL = "a data URL belongs in `image`"
ImageUrl = Annotated[
    str,
    BeforeValidator(_no_data_url),
    Field(
        max_length=MAX_URL,
        pattern=r"^[hH][tT][tT][pP][sS]?://",
        description="https URL, if the service fetches images.",
    ),
]
IMAGE = (
    "PNG, JPEG, WebP or AVIF in base64 or as a data URL; in a form `part:<name>`, the name of a file in the "
    "form"
)
Quantile = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class Attributes(BaseModel):
    """Attributes of the sound, each as a quantile (0 to 1) among training sounds near the prompt.

    0.5 is typical for such sounds, 0.9 is more than most. An absent attribute is left open.
    """

    model_config = ConfigDict(extra="forbid")

    loudness: Quantile | None = Field(
        default=None, description="From quiet to loud, among all training sounds; applied as a gain."
    )
    brightness: Quantile | None = Field(default=None, description="From dull to bright.")
    pitch: Quantile | None = Field(default=None, description="From low to high.")
    noisiness: Quantile | None = Field(default=None, description="From tonal to noisy.")
    density: Quantile | None = Field(default=None, description="From few events to many.")


class WeightedPrompt(BaseModel):
    """One text or image of a set, and its weight."""

    model_config = ConfigDict(extra="forbid")

    text: str | None = Field(default=None, max_length=MAX_TEXT)
    image: str | None = Field(default=None, description=f"{IMAGE}.")
    image_url: ImageUrl | None = None
    weight: Weight = 1.0
    attributes: Attributes = Field(
        default=Attributes(),
        exclude_if=lambda value: value == Attributes(),
        description="Attributes of this sound.",
    )

    @field_validator("text")
    @classmethod
    def _not_blank(cls, value: str | None) -> str | None:
        if value is not None and not value.strip():
            raise ValueError("must not be blank")
        return value

    @field_validator("weight")
    @classmethod
    def _not_zero(cls, value: float) -> float:
        if abs(value) < MIN_WEIGHT:
            raise ValueError(f"must be at least {MIN_WEIGHT} in magnitude")
        return value

    @model_validator(mode="after")
    def _has_one_content(self) -> WeightedPrompt:
        if sum(content is not None for content in (self.text, self.image, self.image_url)) != 1:
            raise ValueError("give exactly one of text, image and image_url")
        return self

    @property
    def is_image(self) -> bool:
        return self.text is None


NAMES = tuple(Attributes.model_fields)


class TimelineItem(WeightedPrompt):
    """One text or image of a timeline, which sounds from `start_s` to `end_s`."""

    weight: float = Field(
        default=1.0,
        ge=MIN_WEIGHT,
        le=MAX_WEIGHT,
        allow_inf_nan=False,
        description="Strength beside the other items of the same moment.",
    )
    start_s: float = Field(ge=0, allow_inf_nan=False)
    end_s: float = Field(gt=0, allow_inf_nan=False, description=f"At least {MIN_ITEM_S} s after start_s.")
    attributes: Attributes = Attributes()
    fade_s: float = Field(
        default=0.25,
        ge=0,
        le=MAX_FADE_S,
        allow_inf_nan=False,
        description="Seconds of its fades: within the item next to silence, else around the change.",
    )

    @model_validator(mode="after")
    def _has_length(self) -> TimelineItem:
        if self.end_s - self.start_s < MIN_ITEM_S - 1e-6:
            raise ValueError(f"end_s must be at least {MIN_ITEM_S} s after start_s")
        return self


class UnderstoodSound(BaseModel):
    """A sound of the training clips near a prompt."""

    name: str = Field(description="As in `sounds` of the model.")
    similarity: float = Field(description="Cosine of the prompt and its nearest frame of this sound.")


class StoredPrompt(BaseModel):
    """One text or image of a set in a job payload or replay token; `image_key` is its key in storage."""

    model_config = ConfigDict(extra="forbid")

    text: str | None = None
    image_key: str | None = None
    image_sha256: str | None = None
    weight: float = 1.0
    attributes: dict[str, float] = Field(default={}, exclude_if=lambda value: not value)
    # In resources only.
    familiarity: float | None = Field(default=None, exclude_if=lambda value: value is None)
    understood_as: list[UnderstoodSound] = Field(default=[], exclude_if=lambda value: not value)


class StoredItem(StoredPrompt):
    """One item of a timeline in a job payload or replay token."""

    start_s: float
    end_s: float
    attributes: dict[str, float] = {}
    fade_s: float = 0.25


class StoredParent(BaseModel):
    """The output that a job varies, by `strength`, or continues, by `extend_s`; a copy of its sound."""

    model_config = ConfigDict(extra="forbid")

    id: str = Field(max_length=64)
    output: int = Field(ge=0, le=7)
    audio_key: str = Field(max_length=100)
    audio_sha256: str = Field(default="", max_length=64)
    strength: float | None = Field(default=None, ge=0, le=1, allow_inf_nan=False)
    extend_s: float | None = Field(default=None, ge=MIN_DURATION_S, allow_inf_nan=False)

    @model_validator(mode="after")
    def _has_one_kind(self) -> StoredParent:
        if (self.strength is None) == (self.extend_s is None):
            raise ValueError("requires either strength or extend_s")
        return self


class StoredVideo(BaseModel):
    """The video of a job payload, without its sound: container, content, and length in seconds."""

    model_config = ConfigDict(extra="forbid")

    extension: Literal["mp4", "webm"]
    sha256: str
    seconds: float
