"""Body of POST /v1/generations."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.json_schema import SkipJsonSchema

from clipsynth.schemas.generation import Format
from clipsynth.schemas.model_info import Method
from clipsynth.schemas.prompts import (
    IMAGE,
    MAX_GUIDANCE,
    MAX_IMAGES,
    MAX_ITEMS,
    MAX_PROMPTS,
    MAX_TEXT,
    MAX_TOTAL_S,
    MAX_URL,
    MIN_DURATION_S,
    Attributes,
    Composition,
    ImageUrl,
    TimelineItem,
    WeightedPrompt,
)

WebhookEvent = Literal["started", "completed"]
Metadata = dict[
    Annotated[str, StringConstraints(min_length=1, max_length=64)],
    Annotated[str, StringConstraints(max_length=500)],
]


# Context of the validation of a recipe's request.
REPLAY = {"is_replay": True}


class GenerationRequest(BaseModel):
    """Request for a generation. Absent values are the model's defaults; an absent seed is random."""

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

    prompt: str | None = Field(
        default=None, max_length=MAX_TEXT, description="Text that describes the sound."
    )
    interpret: bool = Field(
        default=True,
        exclude_if=lambda value: value,
        description='Whether a prompt of several sounds becomes `prompts` ("a dog and rain") or a `timeline` '
        '("rain, then a dog").',
    )
    image: str | None = Field(default=None, description=f"{IMAGE}. A form's only file may have any name.")
    image_url: ImageUrl | None = None
    prompts: list[WeightedPrompt] | None = Field(
        default=None, min_length=1, max_length=MAX_PROMPTS, description="Weighted set of texts and images."
    )
    # `part:video` in a form; JSON has none.
    video: SkipJsonSchema[str | None] = Field(default=None, exclude_if=lambda value: value is None)
    timeline: list[TimelineItem] | None = Field(
        default=None,
        min_length=1,
        max_length=MAX_ITEMS,
        exclude_if=lambda value: value is None,
        description=f"Texts and images with times, at most {MAX_PROMPTS} at one moment, instead of prompts. "
        "duration_s is then by default the last end_s.",
    )
    composition: Composition = "set"
    negative_prompt: str | None = Field(
        default=None, max_length=MAX_TEXT, description="Text of a sound to avoid: a prompt with weight -1."
    )
    attributes: Attributes | None = Field(
        default=None, description="Words of `prompt` (a loud dog) set absent attributes, unless this is {}."
    )
    method: Method = Field(
        default="diffusion",
        description="retrieval plays the nearest training clips, output n the n-th nearest, on models that "
        "offer it; seed, steps, guidance, composition and attributes then have no effect.",
    )
    rank: int = Field(default=0, ge=0, le=100_000, description="With retrieval: nearest clips to skip.")
    seed: int | None = Field(default=None, ge=0, lt=2**32, description="Seed; output n has seed + n.")
    num_inference_steps: int | None = Field(default=None, ge=1, le=200, description="Denoising steps.")
    guidance_scale: float | None = Field(
        default=None,
        ge=0,
        le=MAX_GUIDANCE,
        allow_inf_nan=False,
        description="How strongly the prompt steers the sound; 1 or less is without guidance.",
    )
    duration_s: float | None = Field(
        default=None,
        ge=MIN_DURATION_S,
        allow_inf_nan=False,
        description=f"Seconds of each sound; all of a request together at most {MAX_TOTAL_S:g}.",
    )
    loop: bool = Field(
        default=False,
        exclude_if=lambda value: not value,
        description="Whether the end continues at the beginning. The length is rounded up to 0.04 s.",
    )
    num_outputs: int = Field(default=1, ge=1, le=8, description="Number of sounds.")
    deadline_s: float | None = Field(
        default=None,
        gt=0,
        le=86_400,
        allow_inf_nan=False,
        description="Seconds from now after which an unfinished generation ends as expired.",
    )
    ttl_s: int | None = Field(
        default=None,
        ge=1,
        exclude_if=lambda value: value is None,
        description="Seconds after its end for which the generation is kept; at most and by default the "
        "service's.",
    )
    webhook_url: str | None = Field(
        default=None, max_length=MAX_URL, description="https URL for events, signed as in Standard Webhooks."
    )
    webhook_events: list[WebhookEvent] = Field(
        default=["completed"], min_length=1, max_length=2, description="completed: after any final status."
    )
    model: str | None = Field(default=None, pattern=r"^[a-z0-9-]{1,40}$", description="Name of a model.")
    output_formats: list[Format] = Field(
        default=["wav"], min_length=1, max_length=4, description="Formats of each sound."
    )
    metadata: Metadata = Field(
        default={}, max_length=16, description="Texts of the client, returned with the generation."
    )

    @field_validator("prompt", "negative_prompt")
    @classmethod
    def _not_blank(cls, value: str | None) -> str | None:
        if value is not None and not value.strip():
            raise ValueError("must not be blank")
        return value

    @field_validator("prompts")
    @classmethod
    def _is_set(cls, value: list[WeightedPrompt] | None) -> list[WeightedPrompt] | None:
        if value is not None and all(prompt.weight < 0 for prompt in value):
            raise ValueError("at least one weight must be positive")
        if sum(prompt.is_image for prompt in value or ()) > MAX_IMAGES:
            raise ValueError(f"at most {MAX_IMAGES} images")
        return value

    @field_validator("timeline")
    @classmethod
    def _is_not_crowded(
        cls, value: list[TimelineItem] | None, info: ValidationInfo
    ) -> list[TimelineItem] | None:
        items = value or []
        if any(
            sum(i.start_s <= at < i.end_s for i in items) > MAX_PROMPTS for at in {i.start_s for i in items}
        ):
            raise ValueError(f"at most {MAX_PROMPTS} items at one moment")
        # The recipe of a video has an image for each scene.
        most = MAX_ITEMS if info.context == REPLAY else MAX_IMAGES
        if sum(item.is_image for item in items) > most:
            raise ValueError(f"at most {most} images")
        return value

    @field_validator("output_formats")
    @classmethod
    def _each_once(cls, value: list[Format]) -> list[Format]:
        if len(set(value)) < len(value):
            raise ValueError("must not repeat")
        return value

    @model_validator(mode="after")
    def _has_condition(self) -> GenerationRequest:
        single = (self.prompt, self.image, self.image_url)
        if self.timeline is not None:
            self._check_timeline(self.timeline)
        elif self.prompts is None and self.video is None and single == (None, None, None):
            raise ValueError("give one of prompt, prompts, timeline, image and image_url")
        if self.prompts is not None and single != (None, None, None):
            raise ValueError("prompts cannot be combined with prompt, image or image_url")
        if self.image is not None and self.image_url is not None:
            raise ValueError("give only one of image and image_url; prompts may have several images")
        if self.rank and self.method != "retrieval":
            raise ValueError("rank requires the method retrieval")
        if self.loop and self.method == "retrieval":
            raise ValueError("loop requires the method diffusion")
        return self

    @model_validator(mode="after")
    def _has_one_video(self) -> GenerationRequest:
        if self.video is None:
            return self
        if (self.prompts, self.timeline, self.image, self.image_url) != (None,) * 4:
            raise ValueError(
                "video can be combined with prompt only, not with prompts, a timeline or an image"
            )
        if self.composition == "mix" or self.method == "retrieval" or self.loop:
            raise ValueError("video cannot be combined with loop, composition mix or method retrieval")
        return self

    def _check_timeline(self, items: list[TimelineItem]) -> None:
        if (self.prompt, self.prompts, self.image, self.image_url) != (None,) * 4:
            raise ValueError("timeline cannot be combined with prompt, prompts, image or image_url")
        if self.composition == "mix" or self.method == "retrieval":
            raise ValueError("timeline cannot be combined with the composition mix or the method retrieval")
        if self.duration_s is not None and max(item.end_s for item in items) > self.duration_s:
            raise ValueError("an item of timeline ends after duration_s")

    @property
    def items(self) -> Sequence[WeightedPrompt]:
        """The prompts of a set, or the items of a timeline."""
        return self.timeline or self.prompts or ()

    @property
    def has_urls(self) -> bool:
        """Whether the service must fetch images."""
        return self.image_url is not None or any(item.image_url is not None for item in self.items)

    @cached_property
    def has_images(self) -> bool:
        return self.image is not None or self.has_urls or any(item.is_image for item in self.items)
