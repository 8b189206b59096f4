"""What crosses the boundaries as JSON: the request, the job payload, the resource, what a model says of itself."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from clipsynth.schemas.attributes import Attributes
from clipsynth.schemas.prompts import (
    IMAGE,
    MAX_DURATION_S,
    MAX_GUIDANCE,
    MAX_PROMPTS,
    MAX_TEXT,
    MAX_URL,
    MIN_DURATION_S,
    Composition,
    ImageUrl,
    StoredPrompt,
    WeightedPrompt,
    as_set,
    check_set,
    not_blank,
)

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


class Status(StrEnum):
    """Public status words; the last four are final."""

    QUEUED = "queued"
    PROCESSING = "processing"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"
    EXPIRED = "expired"


TERMINAL = frozenset({Status.SUCCEEDED, Status.FAILED, Status.CANCELED, Status.EXPIRED})


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


class Problem(BaseModel):
    """Why a generation failed."""

    code: str
    detail: str


class TrainingClip(BaseModel):
    """A clip that the model was trained on: from second `start_s` of a video, and whose that is."""

    video: str
    start_s: float
    source: str
    licence: str


class NearClip(TrainingClip):
    """A training clip and how far a sound is from it: 0 is a copy, 1 nothing alike (1 - correlation of log-mels, over shifts in time)."""

    distance: float


class Nearness(BaseModel):
    """How a sound lies to the training clips; empty where the bundle keeps no images of them."""

    novelty: float | None = Field(
        default=None, description="0 to 1: distance to the nearest training clip, with which `nearest` begins"
    )
    is_copy: bool | None = Field(
        default=None,
        description="whether it is nearer than 95 % of training clips are to any of another video",
    )
    nearest: list[NearClip] = []


class Output(Nearness):
    """One sound of a generation, in one format; the same request with `seed` and one output makes it again."""

    index: int
    url: str
    media_type: str
    format: Format
    filename: str | None = None
    duration_s: float
    sample_rate: int
    seed: int
    clip: TrainingClip | None = Field(default=None, description="with the method retrieval: what is heard")
    recipe: str | None = Field(default=None, description="POST /v1/replay makes this sound again from it")
    spectrogram_url: str | None = Field(default=None, description="a PNG of its mel spectrogram")
    peaks_url: str | None = Field(
        default=None, description="its waveform's peaks, as audiowaveform writes them"
    )


class Delivery(BaseModel):
    """How the telling of an event goes."""

    event: str
    status: Literal["pending", "delivered", "failed"]
    attempts: int
    detail: str | None = None
    last_attempt_at: float | None = None
    next_attempt_at: float | None = None


class Webhook(BaseModel):
    """Who is told of a generation."""

    url: str
    events: list[str]
    deliveries: list[Delivery] = []


class Progress(BaseModel):
    """Denoising steps done and in all, over all outputs."""

    step: int
    num_steps: int


class Generation(BaseModel):
    """The resource."""

    id: str
    status: Status
    created_at: float
    started_at: float | None = None
    finished_at: float | None = None
    expires_at: float | None = None
    model: str
    input: JobPayload
    seed: int
    queue_position: int | None = Field(default=None, description="jobs before it in the queue")
    eta_s: float | None = Field(default=None, description="estimated seconds to its end, while queued")
    progress: Progress | None = None
    outputs: list[Output] = []
    error: Problem | None = None
    webhook: Webhook | None = None
    metadata: dict[str, str] = {}
    links: dict[str, str]


class Page(BaseModel):
    """Generations, the newest first; `next_cursor` leads to older ones."""

    data: list[Generation]
    next_cursor: str | None


class Estimate(BaseModel):
    """Seconds until a request that came now would have ended: half of the time less than p50, nine times of ten less than p90."""

    model: str
    unfinished: int = Field(description="generations before it")
    p50_s: float | None = Field(description="null until a worker has measured its cost")
    p90_s: float | None


class ModelCost(BaseModel):
    """What a worker measured at its start.

    `audio_step_s`: seconds that a full batch takes for one denoising step of one second of sound, guidance off. `step_s`: seconds of a full
    step. `guided_share`: share of the steps that guidance doubles. `distilled_guidance_range`: lowest and highest weight of guidance that doubles none, empty
    for a model that has not learned that.
    """

    audio_step_s: float
    step_s: float
    guided_share: float
    distilled_guidance_range: list[float] = []


class ModelInfo(BaseModel):
    """What a worker says of the bundle it serves; seconds and Hz."""

    name: str
    version: str
    sample_rate: int
    min_duration_s: float
    max_duration_s: float
    duration_s: float
    num_inference_steps: int
    guidance_scale: float
    attributes: list[str] = Field(default=[], description="those that a request may ask for")
    methods: list[Method] = ["diffusion"]
    cost: ModelCost | None = None


class ServedModel(ModelInfo):
    """A bundle and whether a worker serves it."""

    status: Literal["ready", "starting", "absent"]
