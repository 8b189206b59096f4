"""Make mels with the denoiser, paired with real sounds, on which to fine-tune the vocoder.

The latent of a real clip is noised to t >= 0.5 and denoised with the clip's own condition. It then has the
flaws of the denoiser but still the timing of the clip. Steps are equally long, without guidance.
"""

from __future__ import annotations

import torch

from models.bundle import Manifest
from models.networks.condition_encoder import ConditionEncoder
from models.networks.denoiser import Denoiser
from models.sampler import SamplerRow, advance
from training.data.clips import Clips

BATCH = 16
STEPS = Manifest.num_inference_steps


class GeneratedClips:
    """The first clips of a split with mels made by a denoiser, in memory: 100 kB per 4 s clip."""

    def __init__(
        self,
        clips: Clips,
        condition_encoder: ConditionEncoder,
        denoiser: Denoiser,
        *,
        limit: int,
        seed: int = 0,
    ) -> None:
        self.clips = clips
        self.mels: list[torch.Tensor] = []
        g = torch.Generator().manual_seed(seed)
        for i in range(0, min(limit, len(clips)), BATCH):
            part = range(i, min(i + BATCH, limit, len(clips)))
            rows = [self._noised(k, condition_encoder, denoiser, g) for k in part]
            with torch.no_grad():
                while running := [row for row in rows if not row.done]:
                    advance(running, denoiser)
            self.mels += [denoiser.to_mel(row.latents)[0].cpu() for row in rows]

    def _noised(
        self, i: int, condition_encoder: ConditionEncoder, denoiser: Denoiser, g: torch.Generator
    ) -> SamplerRow:
        """Return clip i noised to a step with t in [0.5, 0.9]."""
        device = denoiser.device
        data = denoiser.to_tokens(self.clips.mel(i)[None].to(device))[0]
        step = int(torch.randint(-(-STEPS // 2), int(0.9 * STEPS) + 1, (), generator=g))
        embeds = self.clips.embeds(i)
        centred = condition_encoder.centre(embeds[len(embeds) // 2][None].to(device), "image")
        one = torch.ones(1, 1, device=device)
        condition = condition_encoder(centred[None], one, 0 * one, one.bool())
        latents = torch.lerp(torch.randn(data.shape, generator=g).to(device), data, step / STEPS)
        return SamplerRow(latents[None], [condition], condition, STEPS, guidance_scale=1.0, step=step)

    def __len__(self) -> int:
        return len(self.mels)

    def mel(self, i: int) -> torch.Tensor:
        return self.mels[i]

    def waveform(self, i: int) -> torch.Tensor:
        return self.clips.waveform(i)

    def describe(self, i: int) -> str:
        return self.clips.describe(i)
