"""What crosses the boundaries as JSON: the request, the job payload, the resource, what a model says of itself."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Format = Literal["wav", "wav_24", "wav_float", "flac", "ogg", "mp3"]  # wav has 16 bits, as flac
MEDIA_TYPES: dict[Format, str] = {
    "wav": "audio/wav",
    "wav_24": "audio/wav",
    "wav_float": "audio/wav",
    "flac": "audio/flac",
    "ogg": "audio/ogg",
    "mp3": "audio/mpeg",
}
WebhookEvent = Literal["started", "completed"]  # completed: it has ended, whatever its status
MODEL_NAME = r"^[a-z0-9-]{1,40}$"


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
        extra="forbid", json_schema_extra={"examples": [{"prompt": "a dog barking", "seed": 7}]}
    )

    prompt: str | None = Field(default=None, max_length=1000)
    image: str | None = Field(
        default=None, description="a PNG, JPEG or WebP in base64; a multipart upload carries it as a file"
    )
    negative_prompt: str | None = Field(default=None, max_length=1000)
    seed: int | None = Field(default=None, ge=0, lt=2**32)
    num_inference_steps: int | None = Field(default=None, ge=1, le=200)
    guidance_scale: float | None = Field(default=None, ge=0, le=20, allow_inf_nan=False)
    duration_s: float | None = Field(default=None, ge=0.5, le=10, allow_inf_nan=False)
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
        max_length=2000,
        description="an https URL that is told, signed as Standard Webhooks are",
    )
    webhook_events: list[WebhookEvent] = Field(default=["completed"], min_length=1, max_length=2)
    model: str | None = Field(default=None, pattern=MODEL_NAME)
    output_formats: list[Format] = Field(default=["wav"], min_length=1, max_length=4)

    @field_validator("prompt", "negative_prompt")
    @classmethod
    def _not_blank(cls, value: str | None) -> str | None:
        if value is not None and not value.strip():
            raise ValueError("must not be blank")
        return value

    @field_validator("output_formats")
    @classmethod
    def _each_once(cls, value: list[Format]) -> list[Format]:
        if len(set(value)) < len(value):
            raise ValueError("must not repeat")
        return value

    @model_validator(mode="after")
    def _has_condition(self) -> GenerationRequest:
        if self.prompt is None and self.image is None:
            raise ValueError("one of prompt and image is needed")
        return self


class JobPayload(BaseModel):
    """The resolved request on the queue. `image_key` names a picture in storage."""

    model_config = ConfigDict(extra="forbid")

    v: Literal[1] = 1
    model: str
    prompt: str | None
    image_key: str | None
    image_sha256: str | None = None
    negative_prompt: str | None
    seed: int = Field(ge=0, lt=2**32)
    num_inference_steps: int = Field(ge=1, le=200)
    guidance_scale: float
    duration_s: float
    num_outputs: int = Field(ge=1, le=8)
    deadline_s: float | None = None
    output_formats: list[Format] = Field(min_length=1)


class Problem(BaseModel):
    """Why a generation failed."""

    code: str
    detail: str


class Output(BaseModel):
    """One sound of a generation, in one format; the same request with `seed` and one output makes it again."""

    index: int
    url: str
    media_type: str
    format: Format
    filename: str | None = None
    duration_s: float
    sample_rate: int
    seed: int
    recipe: str | None = Field(default=None, description="POST /v1/replay makes this sound again from it")


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
    step. `guided_share`: share of the steps that guidance doubles.
    """

    audio_step_s: float
    step_s: float
    guided_share: float


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
    cost: ModelCost | None = None


class ServedModel(ModelInfo):
    """A bundle and whether a worker serves it."""

    status: Literal["ready", "starting", "absent"]
