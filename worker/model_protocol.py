"""The one interface between the worker and the model that it runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import numpy as np
from PIL import Image

from clipsynth.schemas.generation import Format, JobPayload, Nearness, TrainingClip
from models.bundle import Manifest
from models.conditioning.familiarity import Frames
from models.sampler import SamplerRow, Velocity
from worker.calibration import StepCost


class ServingModel(Protocol):
    """A loaded model. Subclass it to inherit the defaults of the optional abilities.

    Attributes:
        dtype: such as "float32".
        device: such as "cpu".
        velocity: the denoiser, called once per step with a batch of rows.
        distilled_guidance_range: lowest and highest guidance scale that needs no second pass; empty without
            distilled guidance.
        retrieves: whether `nearest_clips` and `clip` work.
        frames: the training frames, which say how well the model knows a prompt; None without an index.
        encoding: held by a thread that uses the encoder.
    """

    manifest: Manifest
    dtype: str
    device: str = "cpu"
    velocity: Velocity
    distilled_guidance_range: Sequence[float] = ()
    retrieves: bool = False
    frames: Frames | None = None
    encoding: AbstractContextManager[Any] = nullcontext()

    def num_tokens(self, duration_s: float) -> int: ...

    def measure(self) -> StepCost:
        """Measure the cost of a denoising step on this device."""

    def rows(
        self, payload: JobPayload, images: Mapping[str, Image.Image], parent: np.ndarray | None = None
    ) -> list[SamplerRow]:
        """Return one row per output, at step 0.

        Args:
            images: the images of the payload, by key.
            parent: waveform (T,) of the payload's parent, if it has one.

        Raises:
            ValueError: the bundle cannot do this; the message is safe for the client.
        """

    def cuts_off(self, text: str) -> bool:
        """Return whether the encoder reads only the beginning of a text."""
        return False

    def embed(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Return embeddings (N, D) of images, at unit norm: those of the bundle's encoder."""
        raise NotImplementedError

    def decode(self, rows: Sequence[SamplerRow], duration_s: float) -> list[np.ndarray]:
        """Return the waveforms (T,) of rows with equal numbers of components and tokens."""

    def log_mel(self, waveform: np.ndarray) -> np.ndarray:
        """Return the log-mel (F, M), in nepers, of a waveform (T,)."""

    def encode_response(self, waveform: np.ndarray, output_format: Format, *, comment: str) -> bytes:
        """Encode a waveform (T,) as a file; ValueError if it is not finite."""

    def nearest_clips(self, payload: JobPayload, images: Mapping[str, Image.Image]) -> list[int]:
        """Return index numbers of clips to play, one per output; arguments and errors as `rows`."""
        raise NotImplementedError

    def clip(self, number: int, duration_s: float) -> tuple[np.ndarray, TrainingClip]:
        """Return a training clip, cut or padded to `duration_s`, as waveform (T,) and description.

        Raises:
            RuntimeError: its file can no longer be read.
        """
        raise NotImplementedError

    def nearness(self, waveform: np.ndarray) -> Nearness:
        """Compare a waveform (T,) with the training clips; empty if the bundle has no thumbnails."""
        return Nearness()
