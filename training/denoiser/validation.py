"""The loss on held-out clips by which a denoiser's best weights are told, at fixed times and with fixed noise."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from training.data.batches import Batch
from training.data.clips import Clips, crop_mel
from training.recipe import Recipe

DEV_FRAMES = 400  # 4 s


def dev_batches(clips: Clips, recipe: Recipe, num_scalars: int = 0) -> list[Batch]:
    """Return held-out clips, of which no scalar is told, at a fixed grid of (t, noise): 4 s, middle frame or first caption, t in {1/8 … 7/8}."""
    g = torch.Generator().manual_seed(0)
    text = recipe.denoiser.condition == "text"
    batches = []
    for i in range(0, len(clips), 32):
        part = range(i, min(i + 32, len(clips)))
        mel = torch.stack([crop_mel(clips.mel(k), DEV_FRAMES, 0) for k in part])
        every = [clips.captions(k) if text else clips.embeds(k) for k in part]
        embeds = torch.stack([e[0 if text else len(e) // 2] for e in every])[:, None]
        noise = torch.randn(mel.shape, generator=g)
        ones = torch.ones(len(part), 1)
        batches += [
            Batch(
                mel=mel,
                noise=noise,
                t=torch.full((len(part),), k / 8),
                embeds=embeds,
                is_text=ones.bool() if text else ~ones.bool(),
                condition_noise=torch.zeros_like(embeds),
                sigma=0 * ones,
                weights=ones,
                mask=ones.bool(),
                scalars=torch.full((len(part), num_scalars), math.nan),
            )
            for k in range(1, 8)
        ]
    return batches


@torch.no_grad()  # not inference mode: the network caches its rotary table, which training then needs
def dev_loss(loss: Callable[[Batch], torch.Tensor], batches: list[Batch], device: torch.device) -> float:
    """Return a loss over `dev_batches`, each row counted once."""
    losses = [loss(batch.to(device)).item() * len(batch.t) for batch in batches]
    return sum(losses) / sum(len(batch.t) for batch in batches)
