"""Batches for the denoiser. Every random choice is keyed by (seed, step, place in the batch), so a run that was resumed, or that is spread
over processes, sees the very samples of one that was not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Self

import torch
from torch.utils.data import Dataset

from training.data import Clips, crop, random_start
from training.recipe import Recipe

LOG_FLOOR = math.log(1e-5)  # the mel of digital silence
MAX_SET = 2  # conditions of one sample in training
CLEAN_SHARE, SET_SHARE = 0.25, 0.2  # of samples: without noise on the condition, and with two conditions


@dataclass(frozen=True)
class Batch:
    """Rows of one step, on one device.

    `mel`, `noise` (B, F, M); `t` (B,) in (0, 1); `embeds` (B, K, D) as encoded and `is_text` (B, K); `condition_noise` (B, K, D) of unit
    expected norm, to be scaled by `sigma` (B, K); `mask` (B, K), all False for a row whose condition was dropped.
    """

    mel: torch.Tensor
    noise: torch.Tensor
    t: torch.Tensor
    embeds: torch.Tensor
    is_text: torch.Tensor
    condition_noise: torch.Tensor
    sigma: torch.Tensor
    mask: torch.Tensor

    def to(self, device: torch.device) -> Self:
        return type(self)(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})


class Batches(Dataset[Batch]):
    """Item n is this process's part of the batch of micro-step n: rows rank, rank + world_size, … of it."""

    def __init__(self, clips: Clips, recipe: Recipe, *, rank: int = 0, world_size: int = 1) -> None:
        """Check that the clips have what the recipe's `condition` needs.

        Raises:
            ValueError: a condition on text, and a clip without captions.
        """
        self.clips, self.recipe, self.rank, self.world_size = clips, recipe, rank, world_size
        d = recipe.denoiser
        self.size = d.batch_size // d.gradient_accumulation_steps
        if d.condition != "image":
            bare = [line["video"] for line in clips.index if "captions" not in line["arrays"]]
            if bare:
                raise ValueError(
                    f"condition {d.condition!r} needs captions, {len(bare)} clips have none, e.g. {bare[0]}; "
                    "prepare with --captions"
                )

    def places(self, n: int) -> list[int]:
        """Return the clips of micro-batch n, for all processes: epoch after epoch, each in an order of its own, nothing twice."""
        chosen: list[int] = []
        epoch, offset = divmod(n * self.size, len(self.clips))
        while len(chosen) < self.size:
            g = torch.Generator().manual_seed(self.recipe.seed + epoch)
            order = torch.randperm(len(self.clips), generator=g).tolist()
            chosen += order[offset : offset + self.size - len(chosen)]
            epoch, offset = epoch + 1, 0
        return chosen

    def __getitem__(self, n: int) -> Batch:
        d = self.recipe.denoiser
        g = torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + n)
        shortest, longest = d.min_frames // d.frames_per_token, d.max_frames // d.frames_per_token
        frames = d.frames_per_token * int(torch.randint(shortest, longest + 1, (), generator=g))
        seeds = torch.randint(2**62, (self.size,), generator=g).tolist()
        rows = [
            self._row(clip, frames, torch.Generator().manual_seed(seed))
            for clip, seed in list(zip(self.places(n), seeds, strict=True))[self.rank :: self.world_size]
        ]
        return Batch(**{f.name: torch.stack([getattr(row, f.name) for row in rows]) for f in fields(Batch)})

    def _row(self, clip: int, frames: int, g: torch.Generator) -> Batch:
        """Return one row, without the batch dimension."""
        d = self.recipe.denoiser
        mel = self.clips.mel(clip)
        mel = (
            crop(mel - LOG_FLOOR, frames, random_start(len(mel), frames, g)) + LOG_FLOOR
        )  # silence after its end
        embeds, is_text = self._conditions(clip, g)
        noise = torch.randn(embeds.shape, generator=g) / embeds.shape[-1] ** 0.5
        sigma = d.max_sigma * torch.rand(MAX_SET, generator=g)
        sigma[torch.rand(MAX_SET, generator=g) < CLEAN_SHARE] = 0.0
        kept, two = torch.rand(2, generator=g) >= torch.tensor([d.cond_dropout_prob, 1 - SET_SHARE])
        return Batch(
            mel=mel,
            noise=torch.randn(mel.shape, generator=g),
            t=torch.sigmoid(torch.randn((), generator=g)),
            embeds=embeds,
            is_text=is_text,
            condition_noise=noise,
            sigma=sigma,
            mask=torch.stack([kept, kept & two]),
        )

    def _conditions(self, clip: int, g: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Return two embeddings (2, D) of frames, captions, or for "hybrid" either, and which are texts (2,)."""
        condition = self.recipe.denoiser.condition
        text = {"image": 0.0, "text": 1.0, "hybrid": 0.5}[condition]
        is_text = torch.rand(MAX_SET, generator=g) < text
        chosen = []
        for kind in is_text.tolist():
            embeds = self.clips.captions(clip) if kind else self.clips.embeds(clip)
            chosen.append(embeds[int(torch.randint(len(embeds), (), generator=g))])
        return torch.stack(chosen), is_text
