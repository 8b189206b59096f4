"""The resource of a generation, and the records of models that the API returns."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, Field

from clipsynth.schemas.request import Format, JobPayload, Method


class Status(StrEnum):
    """Public status words; the last four are final."""

    QUEUED = "queued"
    PROCESSING = "processing"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"
    EXPIRED = "expired"


TERMINAL = frozenset({Status.SUCCEEDED, Status.FAILED, Status.CANCELED, Status.EXPIRED})


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
