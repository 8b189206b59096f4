"""Replay token, and the resource that clients read.

Fields of token and record are stored: renaming one would make stored data unreadable.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from enum import StrEnum
from typing import Any, Literal

from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    computed_field,
    field_validator,
)

from clipsynth.errors import InvalidRequest
from clipsynth.schemas.model_info import Method
from clipsynth.schemas.paths import PATH_PREFIX, RoutePath
from clipsynth.schemas.payload import Format as Format
from clipsynth.schemas.payload import JobPayload as JobPayload
from clipsynth.schemas.prompts import (
    MAX_ITEMS,
    MAX_PROMPTS,
    Composition,
    StoredItem,
    StoredParent,
    StoredPrompt,
    UnderstoodSound,
)
from clipsynth.schemas.understanding import RequestWarning, Understanding

MEDIA_TYPES: dict[Format, str] = {
    "wav": "audio/wav",
    "wav_24": "audio/wav",
    "wav_float": "audio/wav",
    "flac": "audio/flac",
    "ogg": "audio/ogg",
    "mp3": "audio/mpeg",
}


def output_seed(seed: int, n: int) -> int:
    """Return the seed of output n of a request."""
    return (seed + n) % 2**32


def result_folder(generation_id: str, attempt: str | None) -> str:
    """Return the folder of the results of one attempt; older workers had one folder for all attempts."""
    return f"{generation_id}/{attempt}" if attempt else generation_id


class Status(StrEnum):
    """Status of a generation; the last four are final."""

    QUEUED = "queued"
    PROCESSING = "processing"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"
    EXPIRED = "expired"


TERMINAL = frozenset({Status.SUCCEEDED, Status.FAILED, Status.CANCELED, Status.EXPIRED})


# A key in storage is no part of the sound.
KEY = {"image_key"}


def _order(item: StoredPrompt) -> tuple[object, ...]:
    return item.text or "", item.image_sha256 or "", item.weight, sorted(item.attributes.items())


class ReplayToken(BaseModel):
    """Request for exactly one output, with the versions that made it. `image_key` is a key in storage."""

    model_config = ConfigDict(extra="forbid")

    v: Literal[1] = 1
    model: str
    version: str
    prompt: str | None
    prompts: list[StoredPrompt] | None = Field(default=None, max_length=MAX_PROMPTS)
    composition: Composition = "set"
    image_key: str | None
    image_sha256: str | None
    negative_prompt: str | None
    attributes: dict[str, float] = {}
    method: Method = "diffusion"
    rank: int = 0
    seed: int
    num_inference_steps: int
    guidance_scale: float
    duration_s: float
    loop: bool = Field(default=False, exclude_if=lambda value: not value)
    timeline: list[StoredItem] | None = Field(
        default=None, max_length=MAX_ITEMS, exclude_if=lambda value: value is None
    )
    parent: StoredParent | None = Field(default=None, exclude_if=lambda value: value is None)
    dtype: str
    torch: str

    @field_validator("prompts")
    @classmethod
    def _sorted(cls, prompts: list[StoredPrompt] | None) -> list[StoredPrompt] | None:
        """Sort the prompts, so that equal sets have equal tokens."""
        return prompts and sorted(prompts, key=_order)

    @field_validator("timeline")
    @classmethod
    def _in_order(cls, items: list[StoredItem] | None) -> list[StoredItem] | None:
        """Sort the items, so that equal timelines have equal tokens."""
        return items and sorted(items, key=lambda i: (i.start_s, i.end_s, i.model_dump_json(exclude=KEY)))

    def token(self) -> str:
        """Return the token: compact JSON in urlsafe base64."""
        return base64.urlsafe_b64encode(self.model_dump_json().encode()).decode().rstrip("=")

    @property
    def id(self) -> str:
        """16 hex digits: equal for the same sound, wherever its image is stored.

        Fields added later are left out at their default, so that ids of older tokens stay the same.
        """
        excluded: dict[str, Any] = {
            "image_key": True,
            "prompts": {"__all__": KEY},
            "timeline": {"__all__": KEY},
            "parent": {"id", "output", "audio_key"},
        }
        if not self.attributes:
            excluded["attributes"] = True
        if self.method == "diffusion":
            excluded |= {"method": True, "rank": True}
        return hashlib.sha256(self.model_dump_json(exclude=excluded).encode()).hexdigest()[:16]

    @classmethod
    def read(cls, token: str) -> ReplayToken:
        """Decode a token.

        Raises:
            InvalidRequest: it cannot be decoded.
        """
        try:
            text = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
            return cls.model_validate_json(text, strict=True)
        except (binascii.Error, ValidationError, ValueError):
            raise InvalidRequest("/recipe: not the recipe of an output") from None


class Problem(BaseModel):
    """Why a generation failed."""

    code: str
    detail: str


class TrainingClip(BaseModel):
    """A clip that the model was trained on, from second `start_s` of a video."""

    video: str
    start_s: float
    source: str
    licence: str


class NearClip(TrainingClip):
    """A training clip near an output."""

    distance: float = Field(
        description="0 is a copy, 1 is unrelated: 1 minus the correlation of log-mels at the best time shift."
    )


class Nearness(BaseModel):
    """Training clips near an output; empty if the bundle has no thumbnails of its training clips."""

    # Records of older versions have the name `novelty`.
    copy_distance: float | None = Field(
        default=None,
        validation_alias=AliasChoices("copy_distance", "novelty"),
        description="Distance to the nearest training clip: 0 is a copy, 1 is unrelated.",
    )
    is_copy: bool | None = Field(
        default=None, description="Whether it is nearer than 95 % of training clips are to another video's."
    )
    nearest: list[NearClip] = Field(default=[], description="Nearest training clips, the nearest first.")


class Output(Nearness):
    """One sound of a generation, in one format.

    The same request with this `seed` and one output makes the same sound.
    """

    index: int = Field(description="Number of the sound, from 0; each of its formats has the same index.")
    url: RoutePath
    media_type: str
    format: Format
    filename: str | None = Field(default=None, description="Suggested file name.")
    duration_s: float
    sample_rate: int = Field(description="Samples per second.")
    seed: int
    clip: TrainingClip | None = Field(default=None, description="With retrieval: the clip that is played.")
    recipe: str | None = Field(
        default=None, repr=False, description="Token for POST /v1/replay, which repeats the sound."
    )
    spectrogram_url: RoutePath | None = Field(default=None, description="PNG of the mel spectrogram.")
    peaks_url: RoutePath | None = Field(
        default=None, description="Waveform peaks in audiowaveform's JSON format."
    )
    video_url: RoutePath | None = Field(
        default=None,
        description="With a video: the same video with this sound.",
        exclude_if=lambda value: value is None,
    )


class Delivery(BaseModel):
    """Delivery of one event to a webhook."""

    event: str
    status: Literal["pending", "delivered", "failed"]
    attempts: int
    detail: str | None = Field(default=None, description="Why the last attempt failed.")
    last_attempt_at: float | None = Field(default=None, description="Unix time in seconds.")
    next_attempt_at: float | None = Field(default=None, description="Unix time in seconds.")


class Webhook(BaseModel):
    """Webhook of a generation and its deliveries."""

    url: str
    events: list[str]
    deliveries: list[Delivery] = []


class Progress(BaseModel):
    """Denoising steps over all outputs."""

    step: int = Field(description="Steps done.")
    num_steps: int = Field(description="Steps in total.")


class Parent(BaseModel):
    """The output that a generation varies or continues."""

    id: str
    output: int


class Generation(BaseModel):
    """A generation: the request, its status, and its outputs."""

    id: str
    status: Status
    created_at: float = Field(description="Unix time in seconds.")
    started_at: float | None = Field(default=None, description="When a worker last started it; Unix time.")
    finished_at: float | None = Field(default=None, description="When its status became final; Unix time.")
    expires_at: float | None = Field(
        default=None, description="When it and its files are removed; Unix time."
    )
    model: str
    input: JobPayload
    seed: int
    queue_position: int | None = Field(default=None, description="While queued: number of jobs before it.")
    eta_s: float | None = Field(default=None, description="While queued: estimated seconds until its end.")
    progress: Progress | None = Field(default=None, description="Present while it is processing.")
    outputs: list[Output] = []
    familiarity: float | None = Field(
        default=None,
        description="How well the model knows the prompt, of several the least known, from 0 to 1. Half of "
        "the queries at 0.5 are recognised. Null until a worker has said it.",
    )
    understood_as: list[UnderstoodSound] = Field(
        default=[], description="Sounds of the training clips nearest to that prompt."
    )
    warnings: list[RequestWarning] = Field(default=[], description="What the client may not expect.")
    error: Problem | None = None
    webhook: Webhook | None = None
    metadata: dict[str, str] = {}
    # The attempt whose results it has. Older workers had one folder for all attempts.
    _attempt: str | None = PrivateAttr(default=None)

    def explain(self, found: Understanding) -> None:
        """Show how the model understands the input."""
        least = found.mark(self.input.conditions)
        self.familiarity, self.understood_as = least.familiarity, least.understood_as
        self.warnings = self.warnings + found.warnings

    @computed_field(exclude_if=lambda value: value is None)  # type: ignore[prop-decorator]
    @property
    def parent(self) -> Parent | None:
        """The output that it varies or continues."""
        stored = self.input.parent
        return Parent(id=stored.id, output=stored.output) if stored else None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def links(self) -> dict[str, str]:
        """Paths of related routes."""
        path = f"{PATH_PREFIX.get()}/v1/generations/{self.id}"
        return {"self": path} | {name: f"{path}/{name}" for name in ("events", "cancel", "recipe")}

    @property
    def folder(self) -> str:
        """Folder of its results in storage."""
        return result_folder(self.id, self._attempt)


class Page(BaseModel):
    """Generations, the newest first."""

    data: list[Generation]
    next_cursor: str | None = Field(description="`cursor` of the next page; null on the last page.")


class Estimate(BaseModel):
    """Estimated seconds until the end of a request that is sent now."""

    model: str
    unfinished: int = Field(description="Number of unfinished generations of the model.")
    p50_s: float | None = Field(description="Half of the requests end within it; null while unmeasured.")
    p90_s: float | None = Field(description="90 % of the requests end within it; null while unmeasured.")
    familiarity: float | None = Field(default=None, description="As of the generation.")
    understood_as: list[UnderstoodSound] = Field(default=[], description="As of the generation.")
    prompts: list[StoredPrompt] | None = Field(default=None, description="`input.prompts` of the generation.")
    timeline: list[StoredItem] | None = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description="`input.timeline` of the generation.",
    )
    warnings: list[RequestWarning] = Field(default=[], description="As of the generation.")
