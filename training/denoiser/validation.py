"""Validate a denoiser on dev clips: a loss that selects the best weights, and samples for TensorBoard."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch

from models.audio.mel import LOG_FLOOR, MelSpectrogram
from models.audio.vocoder import vocode as to_sound
from models.networks.condition_encoder import GUIDANCE, Condition, Kind, guidance_as_scalar
from models.sampler import SamplerRow, advance
from training.data.batches import Batch
from training.data.clips import DEV_FRAMES, Clips, crop_mel
from training.denoiser.flow_matching import FlowMatching
from training.recipe import Recipe, RequestDefaults
from training.vocoder.networks import present_vocoder


def dev_batches(clips: Clips, recipe: Recipe, num_scalars: int = 0) -> list[Batch]:
    """Return 4 s of each dev clip at t in {1/8 … 7/8} with fixed noise.

    Conditions are the middle frame or the first caption, without noise and without labels.
    """
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


# Not inference mode: the network caches its rotary table, which training needs afterwards.
@torch.no_grad()
def dev_loss(loss: Callable[[Batch], torch.Tensor], batches: list[Batch], device: torch.device) -> float:
    losses = [loss(batch.to(device)).item() * len(batch.t) for batch in batches]
    return sum(losses) / sum(len(batch.t) for batch in batches)


@torch.no_grad()
def samples(
    model: FlowMatching, batch: Batch, device: torch.device, requests: RequestDefaults, rows: int = 4
) -> torch.Tensor:
    """Return log-mels (rows, F, M) for the conditions of the first dev clips, with the bundle's defaults."""
    batch, rows = batch.to(device), min(rows, len(batch.mel))
    encoder, scale = model.condition_encoder, requests.guidance_scale
    unconditional = encoder.encode([[]])
    noise = batch.noise[:rows].reshape(rows, -1, model.denoiser.token_dim)
    kind: Kind = "text" if batch.is_text[0, 0] else "image"
    sets = [[Condition(embed, kind, sigma=0.0)] for embed in batch.embeds[:rows, 0]]
    distilled = encoder.takes_guidance(scale, requests.guidance_interval)
    guidance: list[Mapping[str, float]] = [{GUIDANCE: guidance_as_scalar(scale)}]
    states = [
        SamplerRow(
            x[None],
            [encoder.encode([c])],
            unconditional,
            requests.num_inference_steps,
            scale,
            requests.guidance_interval,
            time_shift=requests.time_shift,
            guided_conds=[encoder.encode([c], guidance)] if distilled else [],
        )
        for x, c in zip(noise, sets, strict=True)
    ]
    while not states[0].done:
        advance(states, model.denoiser)
    return model.denoiser.to_mel(torch.cat([row.latents for row in states])).float().cpu().nan_to_num()


def spectrograms(real: torch.Tensor, made: torch.Tensor) -> torch.Tensor:
    """Return a grey image (H, W) in [0, 1]: log-mels (rows, F, M) of real clips above the generated ones."""
    levels = ((torch.cat([real[: len(made)], made]) - LOG_FLOOR) / -LOG_FLOOR).clamp(0, 1)
    return torch.cat([torch.cat(list(part)) for part in levels.split(len(made))], dim=1).T.flip(0)


@torch.no_grad()
def vocode(recipe: Recipe, mels: torch.Tensor) -> torch.Tensor | None:
    """Return log-mels (rows, F, M) as one waveform (T,); None if the recipe's vocoder has no state yet."""
    mel = MelSpectrogram()
    vocoder = present_vocoder(recipe, mel)
    return None if vocoder is None else to_sound(vocoder, mels, mel).flatten().clamp(-1, 1)
