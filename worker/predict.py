"""A resident pipeline: parameters in, waveforms and WAV bytes out. Knows no queue."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable

import numpy as np
import soundfile
import torch
from PIL import Image

from clipsynth.settings import Settings
from models import ClipSynthPipeline

logger = logging.getLogger(__name__)


def choose_device(wanted: str) -> tuple[torch.device, torch.dtype, str]:
    """Return device, dtype and the reason, for "auto" or a device's name.

    Raises:
        ValueError: the device is not there.
    """
    if wanted in ("auto", "cuda") and torch.cuda.is_available():
        if torch.cuda.is_bf16_supported():
            return torch.device("cuda"), torch.bfloat16, "a CUDA device that computes in bf16"
        return torch.device("cuda"), torch.float32, "a CUDA device without bf16"
    if wanted in ("auto", "mps") and torch.backends.mps.is_available():
        return torch.device("mps"), torch.float32, "Apple's GPU, where half precision garbles sound"
    if wanted in ("auto", "cpu"):
        return torch.device("cpu"), torch.float32, "asked for" if wanted == "cpu" else "no GPU found"
    raise ValueError(f"--device {wanted}: not available here; choose auto or cpu")


class Predictor:
    """A loaded bundle on its device."""

    def __init__(self, pipeline: ClipSynthPipeline) -> None:
        self.pipeline = pipeline

    @classmethod
    def setup(cls, settings: Settings) -> Predictor:
        """Load the bundle of the settings.

        Raises:
            ValueError: no such device, or a bundle that cannot be served (BundleError names the part).
        """
        device, dtype, reason = choose_device(settings.device)
        logger.info("device %s, %s: %s", device, dtype, reason)
        pipeline = ClipSynthPipeline.from_pretrained(settings.model, dtype=dtype)
        return cls(pipeline.to(device))

    def predict(
        self,
        *,
        prompt: str | None,
        image: Image.Image | None,
        negative_prompt: str | None,
        seed: int,
        num_inference_steps: int,
        guidance_scale: float,
        duration_s: float,
        on_step: Callable[[int, int], None] | None = None,
    ) -> np.ndarray:
        """Return one waveform (T,). Raises ValueError on what the bundle cannot do."""
        return self.pipeline(
            prompt,
            image,
            negative_prompt=negative_prompt,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            duration_s=duration_s,
            generator=torch.Generator("cpu").manual_seed(seed),
            callback_on_step_end=on_step,
        ).audios[0]

    def encode_response(self, waveform: np.ndarray) -> bytes:
        """Return a 16-bit mono WAV.

        Raises:
            ValueError: the waveform is not finite.
        """
        if not np.isfinite(waveform).all():
            raise ValueError("the model produced a waveform that is not finite")
        file = io.BytesIO()
        soundfile.write(file, waveform, self.pipeline.manifest.sample_rate, format="WAV", subtype="PCM_16")
        return file.getvalue()
