"""Requests: the body of POST /v1/generations, and the job payload that is made of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

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


Format = Literal["wav", "wav_24", "wav_float", "flac", "ogg", "mp3"]  # wav has 16 bits, as flac
MEDIA_TYPES: dict[Format, str] = {
    "wav": "audio/wav",
    "wav_24": "audio/wav",
    "wav_float": "audio/wav",
    "flac": "audio/flac",
    "ogg": "audio/ogg",
    "mp3": "audio/mpeg",
}
Method = Literal["diffusion", "retrieval"]
WebhookEvent = Literal["started", "completed"]  # completed: it has ended, whatever its status
MODEL_NAME = r"^[a-z0-9-]{1,40}$"
Metadata = dict[
    Annotated[str, StringConstraints(min_length=1, max_length=64)],
    Annotated[str, StringConstraints(max_length=500)],
]


def output_seed(seed: int, n: int) -> int:
    """Return the seed of output n of a request."""
    return (seed + n) % 2**32


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


Quantile = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class Attributes(BaseModel):
    """What the sound is to be like, each a place in 0..1 among training sounds near what is asked for: 0.5 is usual for its kind, 0.9 more than most. What is left out is left open."""

    model_config = ConfigDict(extra="forbid")

    loudness: Quantile | None = Field(
        default=None, description="from quiet to loud, among all training sounds; a gain"
    )
    brightness: Quantile | None = Field(default=None, description="from dull to bright")
    pitch: Quantile | None = Field(default=None, description="from low to high")
    noisiness: Quantile | None = Field(default=None, description="from tonal to noisy")
    density: Quantile | None = Field(default=None, description="from few events to many")

    def given(self) -> dict[str, float]:
        """Return those that are not left open, by name."""
        values: dict[str, float] = self.model_dump(exclude_none=True)
        return values


NAMES = tuple(Attributes.model_fields)


class GenerationRequest(BaseModel):
    """Body of POST /v1/generations. Absent values are the bundle's defaults; an absent seed is drawn and returned."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"prompt": "a dog barking", "seed": 7},
                {
                    "prompts": [
                        {"text": "piano"},
                        {"text": "rain", "weight": 0.5},
                        {"text": "speech", "weight": -0.5},
                    ],
                    "metadata": {"project": "demo"},
                },
                {"prompt": "a dog barking", "attributes": {"pitch": 0.85, "loudness": 0.3}},
            ]
        },
    )

    prompt: str | None = Field(default=None, max_length=MAX_TEXT)
    image: str | None = Field(default=None, description=IMAGE + ", which may also be its only file")
    image_url: ImageUrl | None = None
    prompts: list[WeightedPrompt] | None = Field(
        default=None,
        min_length=1,
        max_length=MAX_PROMPTS,
        description="a weighted set of texts and images in the place of prompt and image; its order means nothing",
    )
    composition: Composition = "set"
    negative_prompt: str | None = Field(
        default=None, max_length=MAX_TEXT, description="what to lead away from; as in prompts with weight -1"
    )
    attributes: Attributes | None = Field(
        default=None,
        description="what the sound is to be like; what they leave open is read from words of `prompt` (a loud dog), unless they are {}",
    )
    method: Method = Field(
        default="diffusion",
        description="retrieval plays the training clips nearest to what is asked for, output n the n-th nearest, where the model offers it; seed, steps, guidance, composition and attributes have no effect then",
    )
    rank: int = Field(
        default=0, ge=0, le=100_000, description="for retrieval: how many of the nearest clips are left out"
    )
    seed: int | None = Field(default=None, ge=0, lt=2**32)
    num_inference_steps: int | None = Field(default=None, ge=1, le=200)
    guidance_scale: float | None = Field(default=None, ge=0, le=MAX_GUIDANCE, allow_inf_nan=False)
    duration_s: float | None = Field(default=None, ge=MIN_DURATION_S, le=MAX_DURATION_S, allow_inf_nan=False)
    num_outputs: int = Field(default=1, ge=1, le=8)
    deadline_s: float | None = Field(
        default=None,
        gt=0,
        le=86_400,
        allow_inf_nan=False,
        description="seconds from now after which nobody wants it any more: it then ends as expired",
    )
    webhook_url: str | None = Field(
        default=None,
        max_length=MAX_URL,
        description="an https URL that is told, signed as Standard Webhooks are",
    )
    webhook_events: list[WebhookEvent] = Field(default=["completed"], min_length=1, max_length=2)
    model: str | None = Field(default=None, pattern=MODEL_NAME)
    output_formats: list[Format] = Field(default=["wav"], min_length=1, max_length=4)
    metadata: Metadata = Field(
        default={}, max_length=16, description="texts of the client's own, which come back with the resource"
    )

    _texts_not_blank = field_validator("prompt", "negative_prompt")(not_blank)
    _set = field_validator("prompts")(check_set)

    @field_validator("output_formats")
    @classmethod
    def _each_once(cls, value: list[Format]) -> list[Format]:
        if len(set(value)) < len(value):
            raise ValueError("must not repeat")
        return value

    @model_validator(mode="after")
    def _has_condition(self) -> GenerationRequest:
        alone = (self.prompt, self.image, self.image_url)
        if self.prompts is None and alone == (None, None, None):
            raise ValueError("one of prompt, prompts, image and image_url is needed")
        if self.prompts is not None and alone != (None, None, None):
            raise ValueError("prompts holds all of a set: no prompt, image or image_url beside it")
        if self.image is not None and self.image_url is not None:
            raise ValueError("only one of image and image_url; prompts may have several images")
        if self.rank and self.method != "retrieval":
            raise ValueError("rank is for the method retrieval")
        return self

    @property
    def has_urls(self) -> bool:
        """Whether images of it are to be fetched."""
        return any(item.image_url is not None for item in (self, *(self.prompts or ())))

    @property
    def has_images(self) -> bool:
        return self.has_urls or any(item.image is not None for item in (self, *(self.prompts or ())))


class JobPayload(BaseModel):
    """The resolved request on the queue. `image_key` names an image in storage; `attributes` are those asked for, and those that words of the prompt said, which it then has no more."""

    model_config = ConfigDict(extra="forbid")

    v: Literal[1] = 1
    model: str
    prompt: str | None
    prompts: list[StoredPrompt] | None = None
    composition: Composition = "set"
    image_key: str | None
    image_sha256: str | None = None
    negative_prompt: str | None
    attributes: dict[str, float] = {}
    method: Method = "diffusion"
    rank: int = Field(default=0, ge=0)
    seed: int = Field(ge=0, lt=2**32)
    num_inference_steps: int = Field(ge=1, le=200)
    guidance_scale: float
    duration_s: float
    num_outputs: int = Field(ge=1, le=8)
    deadline_s: float | None = None
    output_formats: list[Format] = Field(min_length=1)

    @classmethod
    def known(cls, stored: str | bytes) -> Self:
        """Return a record's payload as far as this version knows it: for those who tell of a job that a newer version has accepted, never for who runs it."""
        return cls.model_validate_json(stored, extra="ignore")

    @property
    def conditions(self) -> list[StoredPrompt]:
        """All that it asks for as one weighted set."""
        return as_set(
            prompt=self.prompt,
            prompts=self.prompts,
            negative_prompt=self.negative_prompt,
            image_key=self.image_key,
            image_sha256=self.image_sha256,
        )

    def branches(self, distilled_guidance_range: Sequence[float] = ()) -> tuple[int, int]:
        """Return the rows of the network that a step of one output takes: those with its conditions, and those that guidance adds while it is on.

        Args:
            distilled_guidance_range: lowest and highest weight of guidance for which the model adds none, if it has learned that: for all but compositions that
                guide by several conditions or by weight, and negative prompts.
        """
        weights = [condition.weight for condition in self.conditions]
        wanted = [weight for weight in weights if weight > 0]
        conditional = 1 if self.composition == "set" else len(wanted)
        alone = wanted == weights and (self.composition != "compose" or wanted == [1.0])
        learned = (
            bool(distilled_guidance_range)
            and distilled_guidance_range[0] <= self.guidance_scale <= distilled_guidance_range[1]
        )
        if self.guidance_scale <= 1 or (alone and learned):
            return conditional, 0
        return conditional, len(wanted) if self.composition == "mix" else 1

    def work(self, distilled_guidance_range: Sequence[float] = (), guided_share: float = 1.0) -> float:
        """Return seconds of sound times passes of the network; 0 for retrieval.

        Args:
            guided_share: share of the steps in which guidance adds rows.
        """
        if self.method == "retrieval":
            return 0.0
        conditional, unconditional = self.branches(distilled_guidance_range)
        rows = conditional + unconditional * guided_share
        return self.num_outputs * self.num_inference_steps * self.duration_s * rows
