"""`SpecVqganPipeline`: the baseline of the paper's Table 1, trained on the same clips.

Iashin & Rahtu 2021, "Taming Visually Guided Sound Generation". It differs from CLIPSynth only in how a mel is
made; encoder, conditions, mel and vocoder are those of a bundle.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from diffusers import DiffusionPipeline, ModelMixin
from PIL import Image
from transformers import SpeechT5HifiGan

from models import parts
from models.audio.mel import MelSpectrogram
from models.audio.vocoder import to_waveforms
from models.baselines.code_transformer import CodeTransformer
from models.baselines.mel_codec import MelCodec
from models.bundle import BundleError
from models.networks.condition_encoder import Condition, ConditionEncoder
from models.networks.encoder import JointEncoder
from models.pipeline import ClipSynthOutput

TOP_K = 100  # as in SpecVQGAN's own evaluation
# diffusers looks ModelMixin up in the module that a saved folder names.
__all__ = ["CodeTransformer", "MelCodec", "ModelMixin", "SpecVqganPipeline"]
SAVED_MODULE = "models.specvqgan"  # the module that saved folders name
TRAINED = ("condition_encoder", "codec", "transformer", "vocoder")


class SpecVqganPipeline(DiffusionPipeline):
    """A prompt or an image in, waveforms out, by an autoregressive transformer over the codes of a mel."""

    def __init__(
        self,
        encoder: JointEncoder,
        condition_encoder: ConditionEncoder,
        codec: MelCodec,
        transformer: CodeTransformer,
        vocoder: SpeechT5HifiGan,
        mel: MelSpectrogram,
        output_gain: float = 1.0,
    ) -> None:
        """Join the parts.

        Args:
            output_gain: factor from the vocoder's level to the level of the training clips' sources.
        """
        super().__init__()
        modules = {
            "encoder": encoder,
            "condition_encoder": condition_encoder,
            "codec": codec,
            "transformer": transformer,
            "mel": mel,
        }
        self.register_modules(vocoder=vocoder, **modules)

        # Not in `models.parts`, so that a worker does not load them.
        ours = (CodeTransformer, MelCodec)
        classes = {
            name: (SAVED_MODULE if isinstance(module, ours) else parts.__name__, type(module).__name__)
            for name, module in modules.items()
        }
        self.register_to_config(output_gain=output_gain, **classes)

    @property
    def max_duration_s(self) -> float:
        """The longest sound, in seconds."""
        columns = self.transformer.config.max_codes // self.codec.codes_per_column
        return float(columns * self.codec.config.frames_per_code / self.mel.frame_rate)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, dtype: torch.dtype = torch.float32, **kwargs: Any
    ) -> Self:
        """Load a folder that `save_pretrained` wrote.

        Raises:
            BundleError: no such folder, or a part of it is missing or damaged.
        """
        folder = Path(pretrained_model_name_or_path)
        if not (folder / "model_index.json").is_file():
            raise BundleError(f"{folder} holds no trained SpecVQGAN: it has no model_index.json")
        # diffusers accepts a module that a folder names only when it has been imported.
        importlib.import_module(SAVED_MODULE)
        try:
            pipe: Self = super().from_pretrained(folder, dtype=dtype, **kwargs)
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise BundleError(f"{folder} cannot be loaded: {error}") from error
        for name in TRAINED:
            getattr(pipe, name).eval().requires_grad_(False)
        return pipe

    def __call__(
        self,
        prompt: str | None = None,
        image: Image.Image | None = None,
        *,
        duration_s: float = 4.0,
        top_k: int = TOP_K,
        temperature: float = 1.0,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
    ) -> ClipSynthOutput:
        """Generate a sound for a prompt or an image, one per generator.

        Args:
            duration_s: seconds of each waveform, up to `max_duration_s`.
            top_k: draw each code among this many of the most likely.
            temperature: divides the logits.
            generator: CPU generator, or one per waveform; None draws from torch's global one.

        Raises:
            ValueError: not exactly one of prompt and image, or an argument out of range.
        """
        if (prompt is None) == (image is None) or (prompt is not None and not prompt.strip()):
            raise ValueError("exactly one of `prompt` (not blank) and `image` is needed")
        generators = list(generator) if isinstance(generator, Sequence) else [generator]
        condition = self.encode(prompt, image)
        return self.generate(
            [condition] * len(generators),
            duration_s=duration_s,
            top_k=top_k,
            temperature=temperature,
            generators=generators,
        )

    def encode(self, prompt: str | None, image: Image.Image | None) -> Condition:
        """Return the condition of a prompt or an image; a text's embedding replaces the frame's."""
        if prompt is not None:
            return Condition(self.encoder.encode_text([prompt])[0], "text")
        return Condition(self.encoder.encode_image([image])[0], "image")

    @torch.inference_mode()
    def generate(
        self,
        conditions: Sequence[Condition],
        *,
        duration_s: float = 4.0,
        top_k: int = TOP_K,
        temperature: float = 1.0,
        generators: Sequence[torch.Generator | None],
    ) -> ClipSynthOutput:
        """Generate one sound per condition and generator, in one batch; arguments as for a call.

        A sound is the same in a batch as alone, except for a rare draw that falls on a rounding error.

        Raises:
            ValueError: an argument out of range.
        """
        # 1. Check.
        if not 0 < duration_s <= self.max_duration_s:
            raise ValueError(f"`duration_s` must be up to {self.max_duration_s:g}, got {duration_s}")

        # 2. Draw whole columns of codes.
        frames = math.ceil(duration_s * self.mel.frame_rate)
        columns = math.ceil(frames / self.codec.config.frames_per_code)
        codes = self.transformer.sample(
            self.condition_encoder.encode([[condition] for condition in conditions]).tokens[:, 0],
            columns * self.codec.codes_per_column,
            top_k=min(top_k, self.codec.config.codebook_size),
            temperature=temperature,
            generators=generators,
        )

        # 3. Decode to waveforms of the asked length.
        rate = self.mel.config.sample_rate
        waveforms = to_waveforms(
            self.vocoder,
            self.codec.decode(codes),
            self.mel,
            gain=self.config.output_gain,
            size=round(duration_s * rate),
        )
        return ClipSynthOutput(waveforms, rate)
