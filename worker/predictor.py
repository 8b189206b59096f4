"""A loaded pipeline: parameters in, waveforms and files out. Independent of the queue."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from clipsynth.schemas.generation import Format, JobPayload, NearClip, Nearness, TrainingClip, output_seed
from clipsynth.schemas.payload import CONTEXT_S, windows
from clipsynth.settings import Settings
from models import ClipSynthPipeline, Prompt
from models.audio.continuation import continued, held_samples, without_roughness
from models.audio.level import fit, level, towards_level
from models.conditioning.familiarity import Frames
from models.conditioning.timeline import Stretch
from models.networks.precision import choose_precision, set_precision
from models.retrieval.clip_audio import ClipAudio, open_audio
from models.retriever import Retrieval
from models.sampler import SamplerRow, advance, continuing, varied
from worker.calibration import StepCost, measure_pipeline
from worker.model_protocol import ServingModel
from worker.output_files import encode, faded

logger = logging.getLogger(__name__)
# Training clips listed with an output.
NEAREST = 3


def choose_device(wanted: str) -> tuple[torch.device, str]:
    """Return a device and the reason for this choice.

    Args:
        wanted: "auto", "cuda", "mps" or "cpu".

    Raises:
        ValueError: the device is not available.
    """
    if wanted in ("auto", "cuda") and torch.cuda.is_available():
        return torch.device("cuda"), "a CUDA device"
    if wanted in ("auto", "mps") and torch.backends.mps.is_available():
        return torch.device("mps"), "Apple's GPU"
    if wanted in ("auto", "cpu"):
        return torch.device("cpu"), "asked for" if wanted == "cpu" else "no GPU found"
    raise ValueError(f"--device {wanted}: not available here; choose auto or cpu")


class Predictor(ServingModel):
    """A loaded bundle on its device."""

    def __init__(self, pipeline: ClipSynthPipeline, audio: ClipAudio | None = None) -> None:
        """Wrap a pipeline.

        Args:
            audio: the training sounds, if the worker may play them.

        Raises:
            ValueError: the sound of an indexed clip is missing.
        """
        self.pipeline, self.manifest, self.velocity = pipeline, pipeline.manifest, pipeline.denoiser
        self.dtype = str(pipeline.denoiser.dtype).removeprefix("torch.")
        self.device = pipeline.denoiser.device.type
        self.distilled_guidance_range = pipeline.distilled_guidance_range
        self.encoding = threading.Lock()
        index = pipeline.index
        if index is not None:
            self.frames = Frames(pipeline.embeddings, pipeline.condition_encoder, index, pipeline.manifest)
        self.retrieves = audio is not None and pipeline.index is not None
        if audio is not None and pipeline.index is not None:
            self._retrieval = Retrieval(pipeline, pipeline.index, audio)

    @classmethod
    def setup(cls, settings: Settings) -> Predictor:
        """Load the bundle of the settings.

        Raises:
            ValueError: no such device or precision, or the bundle cannot be served (BundleError names the
                part).
        """
        device, reason = choose_device(settings.device)
        dtype, why = choose_precision(device, settings.precision)
        logger.info("device %s (%s), precision %s (%s)", device, reason, dtype, why)
        pipeline = set_precision(ClipSynthPipeline.from_pretrained(settings.model).to(device), dtype)
        folder = settings.retrieval_audio
        return cls(pipeline, open_audio(folder, pipeline.manifest.sample_rate) if folder else None)

    def warm_up(self) -> None:
        """Use every part once, so that the first job does not wait for it."""
        payload = JobPayload(
            model=self.manifest.name,
            prompt="warm-up",
            image_key="image",
            negative_prompt=None,
            seed=0,
            num_inference_steps=1,
            guidance_scale=1.0,
            duration_s=self.manifest.min_duration_s,
            num_outputs=1,
            output_formats=["wav"],
        )
        self.predict(payload, {"image": Image.new("RGB", (64, 64))})

    def predict(
        self,
        payload: JobPayload,
        images: Mapping[str, Image.Image] = {},
        parent: np.ndarray | None = None,
        on_step: Callable[[int, int], None] | None = None,
    ) -> np.ndarray:
        """Return the waveform (T,) of a payload with one output; arguments and errors as `rows`."""
        rows = self.rows(payload, images, parent)
        with torch.inference_mode():
            while not rows[0].done:
                advance(rows, self.velocity)
                if on_step:
                    on_step(rows[0].step, payload.num_inference_steps)
            waveform = self.decode(rows, payload.duration_s)[0]
        return faded(waveform, payload, self.manifest.sample_rate)

    # ------------------------------------------------------------------------------------------- sampling

    def num_tokens(self, duration_s: float) -> int:
        return self.pipeline.num_tokens(duration_s)

    def measure(self) -> StepCost:
        return measure_pipeline(self.pipeline)

    def rows(
        self, payload: JobPayload, images: Mapping[str, Image.Image], parent: np.ndarray | None = None
    ) -> list[SamplerRow]:
        windows = payload.windows(self.manifest.max_duration_s)
        is_plain = len(windows) == 1 and not payload.loop and not payload.timeline
        with self.encoding:
            rows = self.pipeline.prepare_rows(
                _prompts(payload, images),
                composition=payload.composition,
                num_inference_steps=payload.num_inference_steps,
                guidance_scale=payload.guidance_scale,
                duration_s=payload.sampled_s,
                attributes=payload.attributes,
                generators=[
                    torch.Generator("cpu").manual_seed(output_seed(payload.seed, n))
                    for n in range(payload.num_outputs)
                ],
                windows=[] if is_plain else [Stretch(*window) for window in windows],
                timeline=[Stretch(*span) for span in payload.spans()] if payload.timeline else [],
                loop=payload.loop,
            )
        if payload.parent is None or parent is None:
            return rows
        seconds = payload.duration_s - (payload.parent.extend_s or 0)
        parent = fit(parent, seconds, self.manifest.sample_rate)
        with torch.inference_mode():
            if payload.parent.strength is not None:
                data = self._tokens(self._mel(level(parent)[0]), rows[0].length)
                return [varied(row, data, parent, payload.parent.strength) for row in rows]
            start, shares = self._context(len(parent))
            data = self._tokens(without_roughness(self._mel(level(parent)[0][start:])), len(shares))
            return [continuing(row, data, shares, parent) for row in rows]

    def _mel(self, waveform: np.ndarray) -> torch.Tensor:
        """Return the log-mel (1, F, M) of a waveform (T,)."""
        log_mel: torch.Tensor = self.pipeline.mel(
            torch.from_numpy(waveform)[None].to(self.pipeline.mel.device)
        )
        return log_mel

    def _tokens(self, log_mel: torch.Tensor, count: int) -> torch.Tensor:
        """Return the first tokens (1, count, C) of a log-mel (1, F, M)."""
        tokens = self.pipeline.denoiser.to_tokens(log_mel)
        missing = max(0, count - tokens.shape[1])
        return torch.cat([tokens, tokens[:, -1:].expand(-1, missing, -1)], dim=1)[:, :count]

    def _context(self, size: int) -> tuple[int, torch.Tensor]:
        """Return at which of a parent's samples a continuation begins, and the shares of known tokens (n, 1).

        The shares fall over the end of the parent, which may change.
        """
        token = round(self.manifest.sample_rate / self.num_tokens(1.0))
        start = max(0, -(-size // token) - self.num_tokens(CONTEXT_S)) * token
        held = (held_samples(size, self.manifest.sample_rate) - start) // token
        # The last two tokens also show what is behind the end.
        falling = max(0, (size - start) // token - held - 2)
        shares = (held + falling - torch.arange(held + falling) - 0.5) / (falling + 1)
        return start, shares.clamp(max=1)[:, None].to(self.pipeline.denoiser.device)

    def cuts_off(self, text: str) -> bool:
        is_cut: bool = self.pipeline.encoder.cuts_off(text)
        return is_cut

    def embed(self, images: Sequence[Image.Image]) -> np.ndarray:
        with self.encoding, torch.inference_mode():
            # One at a time: the memory of a video's images together would be large.
            rows = [self.pipeline.embeddings.image(image) for image in images]
            embeddings: np.ndarray = torch.stack(rows).float().cpu().numpy()
        return embeddings

    def decode(self, rows: Sequence[SamplerRow], duration_s: float) -> list[np.ndarray]:
        if (parent := rows[0].parent) is None:
            return self.pipeline.decode(rows, duration_s)
        if rows[0].held is None:
            # At a small strength the sound is as loud as its parent.
            made, kept = self.pipeline.decode(rows, duration_s), rows[0].time_after(0)
            return [towards_level(wave, parent, kept) for wave in made]
        sample_rate = self.manifest.sample_rate
        made = self.pipeline.decode(rows, rows[0].length / self.num_tokens(1.0))
        start, size = self._context(len(parent))[0], round(duration_s * sample_rate)
        return [continued(parent, wave, start, size, sample_rate) for wave in made]

    def log_mel(self, waveform: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            values: np.ndarray = self._mel(waveform)[0].cpu().numpy()
        return values

    def encode_response(
        self, waveform: np.ndarray, output_format: Format = "wav", *, comment: str = "generated by CLIPSynth"
    ) -> bytes:
        return encode(waveform, self.manifest.sample_rate, output_format, comment=comment)

    # ------------------------------------------------------------------------------------- training clips

    def nearest_clips(self, payload: JobPayload, images: Mapping[str, Image.Image]) -> list[int]:
        k = payload.rank + payload.num_outputs
        with self.encoding:
            return self._retrieval.nearest(_prompts(payload, images), k)[payload.rank :]

    def clip(self, number: int, duration_s: float) -> tuple[np.ndarray, TrainingClip]:
        try:
            sound = self._retrieval.sound(number, duration_s)
        except ValueError as error:
            raise RuntimeError("a training sound cannot be read") from error
        return sound, _training_clip(self._retrieval.index.clips[number])

    def nearness(self, waveform: np.ndarray) -> Nearness:
        index, sample_rate = self.pipeline.index, self.manifest.sample_rate
        if index is None or index.thumbnails is None:
            return Nearness()
        seconds = len(waveform) / sample_rate
        found: list[tuple[float, float, list[tuple[int, float]]]] = []
        for window in windows(seconds, self.manifest.max_duration_s):
            part = waveform[round(window.start_s * sample_rate) : round(window.end_s * sample_rate)]
            nearest = index.thumbnails.nearest(self.log_mel(level(part)[0]), NEAREST)
            found.append((nearest[0][1], window.seconds, nearest))
        distance, seconds, nearest = min(found, key=lambda each: each[0])
        threshold = index.thumbnails.copy_distance(seconds)
        return Nearness(
            copy_distance=round(distance, 4),
            is_copy=None if threshold is None else distance < threshold,
            nearest=[
                NearClip(**_training_clip(index.clips[n]).model_dump(), distance=round(d, 4))
                for n, d in nearest
            ],
        )


def _prompts(payload: JobPayload, images: Mapping[str, Image.Image]) -> list[Prompt]:
    return [
        Prompt(
            images[c.image_key] if c.image_key else c.text or "",
            c.weight,
            c.attributes,
        )
        for c in payload.conditions
    ]


def _training_clip(clip: Mapping[str, Any]) -> TrainingClip:
    """Select the fields of an indexed clip that the API shows."""
    return TrainingClip(**{name: clip[name] for name in TrainingClip.model_fields})
