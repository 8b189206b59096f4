"""Models as their workers describe them."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

Method = Literal["diffusion", "retrieval"]


class ModelCost(BaseModel):
    """Cost of a model, as its worker measured it at start."""

    audio_step_s: float = Field(description="Seconds per step and second of sound, without guidance.")
    step_s: float = Field(description="Seconds for one step of a full batch.")
    guided_share: float = Field(description="Share of the steps in which guidance doubles the cost.")
    distilled_guidance_range: list[float] = Field(
        default=[], description="Lowest and highest guidance_scale that costs nothing; may be empty."
    )


class ModelSound(BaseModel):
    """A sound that a model has learned."""

    name: str = Field(description="Class of objects that the images of its clips are nearest to.")
    share: float = Field(description="Share of the training clips.")


class ModelInfo(BaseModel):
    """A model as its worker describes it."""

    name: str
    version: str = Field(description="Hash of the model's files.")
    sample_rate: int = Field(description="Samples per second of its sounds.")
    min_duration_s: float = Field(description="Shortest duration_s of a request.")
    max_duration_s: float = Field(description="Longest duration_s of a request.")
    window_s: float | None = Field(
        default=None, description="Seconds made at a time, as long as the training clips; more costs more."
    )
    duration_s: float = Field(description="Default duration_s.")
    num_inference_steps: int = Field(description="Default number of denoising steps.")
    guidance_scale: float = Field(description="Default guidance_scale.")
    scripts: list[str] = Field(
        default=[], description="ISO 15924 codes of the scripts that it reads; empty if unknown."
    )
    attributes: list[str] = Field(default=[], description="Attributes that a request may have.")
    sounds: list[ModelSound] = Field(
        default=[], description="The most frequent sounds of the training clips; empty while it is loaded."
    )
    methods: list[Method] = Field(default=["diffusion"], description="Methods that a request may have.")
    precision: str = Field(
        default="float32", description="Of the denoiser. Another one may change a seed's sound slightly."
    )
    device: str | None = Field(default=None, description="cpu, cuda or mps; null while it is loaded.")
    cost: ModelCost | None = Field(default=None, description="Null until its worker has measured it.")


class ServedModel(ModelInfo):
    """A model and its state."""

    status: Literal["ready", "starting", "absent"] = Field(
        description="starting: a worker loads it. absent: no worker is running. Requests are queued in both "
        "cases, if a worker served it within CLIPSYNTH_QUEUE_TIMEOUT_S."
    )
    last_seen_at: float | None = Field(
        default=None, description="When a worker last announced that it serves it; Unix time."
    )
