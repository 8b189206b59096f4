"""A resident pipeline: parameters in, waveforms and WAV bytes out. Knows no queue."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from PIL import Image

from clipsynth.schemas.generation import Format, JobPayload, Nearness, TrainingClip, output_seed
from clipsynth.schemas.prompts import Composition
from clipsynth.settings import Settings
from models import ClipSynthPipeline, Prompt
from models.retrieval.clip_audio import ClipAudio, open_audio
from models.retriever import Retrieval
from models.sampler import SamplerRow
from worker.audio_files import encode
from worker.calibration import StepCost, measure_pipeline
from worker.copy_check import described, nearness
from worker.model_protocol import ServingModel

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


class Predictor(ServingModel):
    """A loaded bundle on its device."""

    def __init__(self, pipeline: ClipSynthPipeline, audio: ClipAudio | None = None) -> None:
        """Take a pipeline, and the training sounds where they may be played; ValueError where some of those are missing."""
        self.pipeline, self.manifest, self.velocity = pipeline, pipeline.manifest, pipeline.denoiser
        self.dtype = str(pipeline.denoiser.dtype).removeprefix("torch.")
        self.distilled_guidance_range = pipeline.distilled_guidance_range
        self.retrieves = audio is not None and pipeline.index is not None
        if audio is not None and pipeline.index is not None:
            self._retrieval = Retrieval(pipeline, pipeline.index, audio)

    @classmethod
    def setup(cls, settings: Settings) -> Predictor:
        """Load the bundle of the settings.

        Raises:
            ValueError: no such device, or a bundle that cannot be served (BundleError names the part).
        """
        device, dtype, reason = choose_device(settings.device)
        logger.info("device %s, %s: %s", device, dtype, reason)
        pipeline = ClipSynthPipeline.from_pretrained(settings.model, dtype=dtype).to(device)
        folder = settings.retrieval_audio
        return cls(pipeline, open_audio(folder, pipeline.manifest.sample_rate) if folder else None)

    def warm_up(self) -> None:
        """Use every part once, so that the first job pays for nothing."""
        self.predict(
            prompt="warm-up",
            image=Image.new("RGB", (64, 64)),
            negative_prompt=None,
            seed=0,
            num_inference_steps=1,
            guidance_scale=1.0,
            duration_s=self.manifest.min_duration_s,
        )

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
        composition: Composition = "set",
        attributes: Mapping[str, float] | None = None,
        on_step: Callable[[int, int], None] | None = None,
    ) -> np.ndarray:
        """Return one waveform (T,). Raises ValueError on what the bundle cannot do."""
        return self.pipeline(
            prompt,
            image,
            negative_prompt=negative_prompt,
            composition=composition,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            duration_s=duration_s,
            attributes=attributes,
            generator=torch.Generator("cpu").manual_seed(seed),
            callback_on_step_end=on_step,
        ).audios[0]

    # ------------------------------------------------------------------------- in parts, as the engine takes it

    def num_tokens(self, duration_s: float) -> int:
        return self.pipeline.num_tokens(duration_s)

    def measure(self) -> StepCost:
        """Return what a denoising step costs on this device."""
        return measure_pipeline(self.pipeline)

    def rows(self, payload: JobPayload, images: Mapping[str, Image.Image]) -> list[SamplerRow]:
        """Return a row per output, at step 0; `images` are those that the payload names. Raises ValueError on what the bundle cannot do."""
        return self.pipeline.prepare_rows(
            _prompts(payload, images),
            composition=payload.composition,
            num_inference_steps=payload.num_inference_steps,
            guidance_scale=payload.guidance_scale,
            duration_s=payload.duration_s,
            attributes=payload.attributes,
            generators=[
                torch.Generator("cpu").manual_seed(output_seed(payload.seed, n))
                for n in range(payload.num_outputs)
            ],
        )

    def decode(self, rows: Sequence[SamplerRow], duration_s: float) -> list[np.ndarray]:
        """Return the waveforms (T,) of rows with equally many voices and tokens."""
        return self.pipeline.decode(rows, duration_s)

    def log_mel(self, waveform: np.ndarray) -> np.ndarray:
        """Return the log-mel (F, M) of a waveform (T,), in nepers."""
        mel = self.pipeline.mel
        with torch.inference_mode():
            values: np.ndarray = mel(torch.from_numpy(waveform)[None].to(mel.device))[0].cpu().numpy()
        return values

    def encode_response(
        self, waveform: np.ndarray, output_format: Format = "wav", *, comment: str = "generated by CLIPSynth"
    ) -> bytes:
        """Return a file. Raises ValueError where the waveform is not finite."""
        return encode(waveform, self.manifest.sample_rate, output_format, comment=comment)

    # ------------------------------------------------------------------------------- with the training clips

    def nearest_clips(self, payload: JobPayload, images: Mapping[str, Image.Image]) -> list[int]:
        """Return the numbers in the index of the training clips that a payload asks for; arguments and errors as for `rows`."""
        k = payload.rank + payload.num_outputs
        return self._retrieval.nearest(_prompts(payload, images), k)[payload.rank :]

    def clip(self, number: int, duration_s: float) -> tuple[np.ndarray, TrainingClip]:
        """Return the sound (T,) of a training clip, cut or filled to `duration_s`, and what it is.

        Raises:
            RuntimeError: it cannot be read any more.
        """
        try:
            sound = self._retrieval.sound(number, duration_s)
        except ValueError as error:
            raise RuntimeError("a training sound cannot be read") from error
        return sound, described(self._retrieval.index.clips[number])

    def nearness(self, waveform: np.ndarray) -> Nearness:
        """Return how a waveform (T,) lies to the training clips, where the bundle has images of their sounds."""
        index = self.pipeline.index
        if index is None or index.thumbnails is None:
            return Nearness()
        return nearness(index, index.thumbnails, self.log_mel, waveform, self.manifest.sample_rate)


def _prompts(payload: JobPayload, images: Mapping[str, Image.Image]) -> list[Prompt]:
    return [
        Prompt(images[c.image_key] if c.image_key else c.text or "", c.weight) for c in payload.conditions
    ]
