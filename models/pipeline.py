"""`ClipSynthPipeline`: a prompt or an image in, waveforms out. Keeps no state between calls."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline
from diffusers.utils import BaseOutput, is_accelerate_available
from PIL import Image

from models import parts, schedule
from models.audio.attributes import Scales, taken
from models.audio.mel import MelSpectrogram
from models.audio.vocoder import Vocoder, hop_length, mix, to_waveforms
from models.bundle import BundleError, Manifest, check_parts
from models.conditioning import attribute_targets
from models.conditioning.branches import Conditioner, in_order
from models.conditioning.embeddings import Embeddings
from models.conditioning.prompts import Composition, Prompt, as_set, check_set, templated
from models.conditioning.timeline import Stretch, at_levels, plateaus_of, silent_frames, tokens_of
from models.networks.condition_encoder import Condition, ConditionEncoder, Kind
from models.networks.denoiser import Denoiser
from models.networks.encoder import JointEncoder
from models.networks.precision import fastest_precision as fastest_precision
from models.retrieval.clip_index import Index
from models.sampler import RowWindow, SamplerRow, advance

PART_NAMES = ("encoder", "condition_encoder", "denoiser", "vocoder", "mel")


@dataclass
class ClipSynthOutput(BaseOutput):
    """`audios`: float32 waveforms (T,) in [-1, 1], T = round(duration_s * sample_rate)."""

    audios: list[np.ndarray]
    sample_rate: int


class ClipSynthPipeline(DiffusionPipeline):
    """Text- and image-to-audio by diffusion, trained on videos only (CLIPSynth, Dong et al. 2023).

    Attributes:
        manifest: name, limits and defaults of the bundle.
        index: the training clips; None where the bundle has no index.
    """

    manifest: Manifest
    index: Index | None = None

    def __init__(
        self,
        encoder: JointEncoder,
        condition_encoder: ConditionEncoder,
        denoiser: Denoiser,
        vocoder: Vocoder,
        mel: MelSpectrogram,
    ) -> None:
        """Join the parts.

        Raises:
            BundleError: two parts do not fit; the message names them.
        """
        super().__init__()
        self.register_modules(
            encoder=encoder, condition_encoder=condition_encoder, denoiser=denoiser, vocoder=vocoder, mel=mel
        )
        self.embeddings = Embeddings(encoder)
        classes = {name: type(getattr(self, name)).__name__ for name in PART_NAMES}
        ours = {name: class_name for name, class_name in classes.items() if hasattr(parts, class_name)}
        self.register_to_config(**{name: (parts.__name__, class_name) for name, class_name in ours.items()})
        c, v, m = condition_encoder.config, vocoder.config, mel.config
        for name, got, expected, unit in (
            ("vocoder", v.model_in_dim, m.n_mels, "mel bands"),
            ("vocoder", hop_length(vocoder), m.hop_length, "samples per frame"),
            ("vocoder", v.sampling_rate, m.sample_rate, "Hz"),
            ("denoiser", denoiser.config.n_mels, m.n_mels, "mel bands"),
            ("condition_encoder", c.embed_dim, encoder.embed_dim, "values per embedding"),
            ("denoiser", denoiser.config.condition_dim, c.embed_dim, "values per condition"),
        ):
            if got != expected:
                raise BundleError(f"{name}: does not fit the other parts: {got} {unit}, they have {expected}")

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, dtype: torch.dtype = torch.float32, **kwargs: Any
    ) -> Self:
        """Load a bundle folder.

        Raises:
            BundleError: no such folder, a part is missing or damaged, or two parts do not fit. The message
                names the part.
        """
        folder = Path(pretrained_model_name_or_path)
        manifest = Manifest.read(folder)
        check_parts(folder, PART_NAMES)
        # A worker has no accelerate, and diffusers warns of that.
        kwargs.setdefault("low_cpu_mem_usage", is_accelerate_available())
        try:
            pipe: Self = super().from_pretrained(folder, dtype=dtype, **kwargs)
        except BundleError:
            raise
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise BundleError(f"{folder} cannot be loaded: {error}") from error
        pipe.manifest, pipe.index = manifest, Index.read(folder)
        for name in ("condition_encoder", "denoiser", "vocoder"):
            getattr(pipe, name).eval().requires_grad_(False)
        return pipe

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Write the bundle: one folder per part, `model_index.json`, the index and `clipsynth.json`."""
        super().save_pretrained(save_directory, **kwargs)
        for name in ("model_index.json", "*/config.json"):
            for file in Path(save_directory).glob(name):
                config = json.loads(file.read_text())
                # A bundle does not record the folder that its parts were loaded from.
                config.pop("_name_or_path", None)
                file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        if self.index is not None:
            self.index.write(Path(save_directory))
        self.manifest = self.manifest.write(Path(save_directory))

    @torch.inference_mode()
    def __call__(
        self,
        prompt: str | Sequence[Prompt] | None = None,
        image: Image.Image | None = None,
        *,
        negative_prompt: str | None = None,
        composition: Composition = "set",
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        duration_s: float | None = None,
        attributes: Mapping[str, float] | None = None,
        num_waveforms_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        callback_on_step_end: Callable[[int, int], None] | None = None,
    ) -> ClipSynthOutput:
        """Generate sounds for a prompt, an image, or both.

        Args:
            prompt: a text, or a set of texts and images with weights; at least one weight is positive.
            negative_prompt: replaces the unconditional branch, as prompts of negative weight do; needs
                guidance_scale > 1.
            composition: how several prompts are combined; see `prepare_rows`.
            num_inference_steps: denoising steps, 1 to 200; by default the bundle's, as the next two.
            guidance_scale: weight of classifier-free guidance; 1 or less switches it off.
            duration_s: seconds of each waveform, within the bundle's range.
            attributes: values in 0..1 by name, for names in `self.attributes`. Each is a quantile among the
                training clips nearest to the prompt, so 0.85 of "pitch" is high for its kind.
            generator: a CPU generator, or one per waveform. None draws from torch's global generator.
            callback_on_step_end: called with (steps done, all steps); its exceptions end the call.

        Raises:
            ValueError: an argument is out of range. The message has the received value and the allowed ones.
        """
        # 1. Fill in the bundle's defaults.
        m = self.manifest
        steps = m.num_inference_steps if num_inference_steps is None else num_inference_steps
        scale = m.guidance_scale if guidance_scale is None else guidance_scale
        seconds = m.duration_s if duration_s is None else duration_s
        generators = generator if isinstance(generator, list) else [generator] * num_waveforms_per_prompt
        if (n := num_waveforms_per_prompt) < 1 or len(generators) != n:
            raise ValueError(f"{n} waveforms need as many generators, got {len(generators)}")

        # 2. Encode the conditions and draw the noise.
        rows = self.prepare_rows(
            as_set(prompt, image, negative_prompt),
            composition=composition,
            num_inference_steps=steps,
            guidance_scale=scale,
            duration_s=seconds,
            generators=generators,
            attributes=attributes,
        )

        # 3. Denoise.
        while not rows[0].done:
            advance(rows, self.denoiser)
            if callback_on_step_end is not None:
                callback_on_step_end(rows[0].step, steps)

        # 4. Decode to waveforms of the asked length.
        return ClipSynthOutput(self.decode(rows, seconds), self.mel.config.sample_rate)

    @torch.inference_mode()
    def prepare_rows(
        self,
        prompts: Sequence[Prompt],
        *,
        num_inference_steps: int,
        guidance_scale: float,
        duration_s: float,
        generators: Sequence[torch.Generator | None],
        composition: Composition = "set",
        attributes: Mapping[str, float] | None = None,
        windows: Sequence[Stretch] = (),
        timeline: Sequence[Stretch] = (),
        loop: bool = False,
    ) -> list[SamplerRow]:
        """Return one row per generator, at step 0, with noise drawn on the CPU. Arguments as for a call.

        `set`: all prompts of positive weight are tokens of one set, each scaled by its weight. `compose`:
            each prompt guides the sound by itself, with `guidance_scale` times its weight. `mix`: each prompt
            makes a component of its own, and the weight is its level in the mix; the components take the
            generator's noise in order. With one positive prompt of weight 1 the three give equal bytes.

        Args:
            windows: windows of the sound, none longer than `max_duration_s`; empty for one.
            timeline: stretches in which the same prompts sound, for their levels; silent without prompts.
            loop: whether the end continues at the beginning.

        Raises:
            ValueError: an argument is out of range.
        """
        sets = {window.items for window in windows} or {None}
        longest_s = max((window.seconds for window in windows), default=duration_s)
        for items in sets:
            own = [p for n, p in enumerate(prompts) if items is None or n in items or p.weight < 0]
            self.check_inputs(own, num_inference_steps, guidance_scale, longest_s, composition)
        for named in (attributes or {}, *(prompt.attributes for prompt in prompts)):
            attribute_targets.check(named, self.attributes)
        conditioner = Conditioner(
            self.condition_encoder,
            self.index,
            Scales(self.manifest.attributes),
            self.manifest.attribute_reach,
            prompts,
            [self._embed(prompt.content) for prompt in prompts],
            composition,
            attributes or {},
            guidance_scale,
            self.manifest.guidance_interval,
        )
        length, device, m = self.num_tokens(duration_s), self.denoiser.device, self.manifest
        rate = self.mel.frame_rate / self.denoiser.config.frames_per_token
        branches = {items: conditioner.branches(items) for items in sets}
        first = branches[windows[0].items if windows else None]
        made = []
        for w in windows:
            places, shares = tokens_of(w, self.num_tokens(w.seconds), length, rate, loop=loop)
            made.append(RowWindow(places.to(device), shares.to(device), **vars(branches[w.items])))
        shape = (len(first.conds) if composition == "mix" else 1, length, self.denoiser.token_dim)
        noise = [
            torch.stack([torch.randn(shape[1:], generator=g) for _ in range(shape[0])]).to(device)
            for g in generators
        ]
        return [
            SamplerRow(
                x,
                first.conds,
                first.uncond,
                num_inference_steps,
                guidance_scale,
                self.manifest.guidance_interval,
                first.weights,
                guided_conds=first.guided_conds,
                loudness_dbfs=None if timeline else conditioner.loudness(),
                time_shift=schedule.shift_for(num_inference_steps / m.num_inference_steps, m.time_shift),
                windows=made,
                plateaus=plateaus_of(timeline, conditioner.loudness),
                loop=loop,
            )
            for x in noise
        ]

    @property
    def attributes(self) -> tuple[str, ...]:
        """Names of the attributes that this bundle accepts."""
        return taken(self.manifest.attributes, self.condition_encoder.config.scalars)

    @property
    def distilled_guidance_range(self) -> tuple[float, ...]:
        """Lowest and highest guidance weight that needs no second pass; empty without distilled guidance."""
        encoder, times = self.condition_encoder, self.manifest.guidance_interval
        scales = tuple(encoder.config.guidance_scales)
        return scales if scales and encoder.takes_guidance(scales[0], times) else ()

    def check_inputs(
        self,
        prompts: Sequence[Prompt],
        num_inference_steps: int,
        guidance_scale: float,
        duration_s: float,
        composition: Composition = "set",
    ) -> None:
        """Raise ValueError for an argument that is out of range."""
        m = self.manifest
        check_set(prompts, composition, guidance_scale, self.condition_encoder.config.max_conditions)
        if not 1 <= num_inference_steps <= 200:
            raise ValueError(f"`num_inference_steps` must be 1 to 200, got {num_inference_steps}")
        if not m.min_duration_s <= duration_s <= m.max_duration_s:
            allowed = f"{m.min_duration_s:g} to {m.max_duration_s:g}"
            raise ValueError(f"`duration_s` must be {allowed} for this bundle, got {duration_s}")

    def encode_conditions(self, prompts: Sequence[Prompt], sign: int) -> list[Condition]:
        """Return the conditions of the prompts whose weight has this sign, in a fixed order."""
        return [found for found, _ in in_order(prompts, [self._embed(p.content) for p in prompts], sign)]

    def _embed(self, content: str | Image.Image) -> tuple[torch.Tensor, Kind]:
        if not isinstance(content, str):
            return self.embeddings.image(content), "image"
        settings = self.condition_encoder.config
        texts = templated(content) if settings.text_templates else [content]
        embeds = self.embeddings.texts(texts)
        embed = F.normalize(embeds.mean(0, keepdim=True), dim=-1) if len(texts) > 1 else embeds
        if settings.anchor_share > 0:
            mixture = self.encoder.among_classes(embed, settings.anchor_tau, self._shown_classes)
            embed = F.normalize(torch.lerp(embed, mixture, settings.anchor_share), dim=-1)
        return embed[0], "text"

    @cached_property
    def _shown_classes(self) -> torch.Tensor | None:
        return self.condition_encoder.shown(self.encoder.class_anchors)

    def num_tokens(self, duration_s: float) -> int:
        """Return how many tokens cover `duration_s` seconds."""
        return math.ceil(math.ceil(duration_s * self.mel.frame_rate) / self.denoiser.config.frames_per_token)

    def decode(self, rows: Sequence[SamplerRow], duration_s: float) -> list[np.ndarray]:
        """Return the waveforms (T,) of rows with equal numbers of components and tokens.

        Components are mixed. A row with a requested loudness is scaled to it. No peak is above 0.99.
        """
        first, sample_rate = rows[0], self.mel.config.sample_rate
        log_mel = self.denoiser.to_mel(torch.cat([row.latents for row in rows]))
        size = (
            log_mel.shape[1] * self.mel.config.hop_length if first.loop else round(duration_s * sample_rate)
        )
        if first.plateaus:
            silent = silent_frames(first.plateaus, log_mel.shape[1], self.mel.frame_rate, duration_s)
            log_mel[:, torch.from_numpy(silent).to(log_mel.device)] = math.log(self.mel.config.log_floor)
        waveforms = to_waveforms(
            self.vocoder, log_mel, self.mel, gain=self.manifest.output_gain, size=size, loop=first.loop
        )
        if (components := first.components) > 1:
            mixed = (np.stack(waveforms[n : n + components]) for n in range(0, len(waveforms), components))
            waveforms = [mix(parts, row.weights) for parts, row in zip(mixed, rows, strict=True)]
        pairs = zip(waveforms, rows, strict=True)
        loud = [attribute_targets.at_loudness(waveform, row.loudness_dbfs) for waveform, row in pairs]
        return [at_levels(w, r.plateaus, sample_rate, loop=r.loop) for w, r in zip(loud, rows, strict=True)]
