"""Batches for the denoiser. Every random choice is keyed by (seed, step, place in the batch), so a run that was resumed, or that is spread
over processes, sees the very samples of one that was not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Self

import torch
from torch.utils.data import Dataset

from models.attributes import Scales, by_name
from models.mel import MelSpectrogram
from models.phrases import PhraseBank
from training.data import Clips, crop, random_start
from training.recipe import Recipe
from training.variants import TAPS, at_speed, mixed, sped_up

LOG_FLOOR = math.log(1e-5)  # the mel of digital silence
MAX_SET = 2  # conditions of one sample in training
CLEAN_SHARE = 0.25  # of samples: without noise on the condition
SET_SHARE = 0.2  # of samples: with two frames of one clip
TOLD_SHARE, EACH_TOLD_SHARE = 0.6, 0.6  # of samples: with scalars at all, and with each one then
NEAREST_PHRASES = 5  # of which one stands for a frame
MIX_DB = 10.0  # a mix's second sound is up to so much louder or softer than the first


def told_scalars(recipe: Recipe, clips: Clips) -> tuple[str, ...]:
    """Return the recipe's scalars; "agreement" only where it was measured, for what was never told means nothing to a network that is told it."""
    measured = any(clips.agreement(i) is not None for i in range(len(clips)))
    return tuple(name for name in recipe.denoiser.scalars if name != "agreement" or measured)


def sampling_weights(scores: torch.Tensor, *, temperature: float = 0.1) -> torch.Tensor:
    """Return how often clips (N,) with these quantiles of agreement are drawn, in sum 1: sigmoid((s - 0.3) / temperature)."""
    weights = torch.sigmoid((scores - 0.3) / temperature)
    return weights / weights.sum()


@dataclass(frozen=True)
class Batch:
    """Rows of one step, on one device.

    `mel`, `noise` (B, F, M); `t` (B,) in (0, 1); `embeds` (B, K, D) as encoded and `is_text` (B, K); `condition_noise` (B, K, D) of unit
    expected norm, to be scaled by `sigma` (B, K); `weights` (B, K) are 1, but in a mix the sounds' amplitudes, of which the larger is 1;
    `mask` (B, K), all False for a row whose condition was dropped; `scalars` (B, S) in 0..1, NaN where one is not told.
    """

    mel: torch.Tensor
    noise: torch.Tensor
    t: torch.Tensor
    embeds: torch.Tensor
    is_text: torch.Tensor
    condition_noise: torch.Tensor
    sigma: torch.Tensor
    weights: torch.Tensor
    mask: torch.Tensor
    scalars: torch.Tensor

    def to(self, device: torch.device) -> Self:
        return type(self)(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})


@dataclass(frozen=True)
class Remade:
    """What the mels of some rows of a batch are to be made of: `rows` (N,) of it; `waves` (N, 2, T), `speeds` (N,) of the first, `gains` (N,) of the second, 0
    where there is none.
    """

    rows: torch.Tensor
    waves: torch.Tensor
    speeds: torch.Tensor
    gains: torch.Tensor

    def put_into(self, batch: Batch, mel: MelSpectrogram) -> None:
        """Make the mels, where the batch is."""
        if not len(self.rows):
            return
        waves, speeds, gains = (x.to(batch.mel.device) for x in (self.waves, self.speeds, self.gains))
        size = batch.mel.shape[1] * mel.config.hop_length
        first = at_speed(waves[:, 0], speeds, size)
        both = torch.where(gains[:, None] > 0, mixed(first, waves[:, 1, :size], gains), first)
        batch.mel[self.rows.to(batch.mel.device)] = mel(both)


class Batches(Dataset[tuple[Batch, Remade]]):
    """Item n is this process's part of the batch of micro-step n: rows rank, rank + world_size, … of it, and those of its mels that are still to be made.

    Those are many times the work of the rest, and left to the device.
    """

    def __init__(
        self,
        clips: Clips,
        recipe: Recipe,
        bank: PhraseBank | None = None,
        *,
        scalars: Sequence[str] | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Check that the clips have what the recipe's `condition` needs; `bank` has the phrases of `pseudo_text`, `scalars` are what
        the network can be told, by default `told_scalars`.

        Raises:
            ValueError: a condition on text, and a clip without captions.
        """
        self.clips, self.recipe, self.rank, self.world_size = clips, recipe, rank, world_size
        d = recipe.denoiser
        self.size = d.batch_size // d.gradient_accumulation_steps
        self.bank = bank
        self.hop = MelSpectrogram().config.hop_length
        self.names = told_scalars(recipe, clips) if scalars is None else tuple(scalars)
        self.named = [by_name(line["attributes"]) if self.names else {} for line in clips.index]
        self.scales = Scales.of(self.named)
        self.weights = self._agreement_weights() if d.agreement_weight else None
        if d.condition != "image":
            bare = [line["video"] for line in clips.index if "captions" not in line["arrays"]]
            if bare:
                raise ValueError(
                    f"condition {d.condition!r} needs captions, {len(bare)} clips have none, e.g. {bare[0]}; "
                    "prepare with --captions"
                )

    def _agreement_weights(self) -> torch.Tensor:
        """Return how often each clip is drawn (N,), by how well its sound fits its picture.

        Raises:
            ValueError: the clips have no agreement.
        """
        scores = [self.clips.agreement(i) for i in range(len(self.clips))]
        known = [score for score in scores if score is not None]
        if len(known) < len(scores):
            raise ValueError("agreement_weight needs scores; run: clipsynth agreement PREPARED")
        return sampling_weights(torch.tensor(known))

    def places(self, n: int) -> list[int]:
        """Return the clips of micro-batch n, for all processes: epoch after epoch, each in an order of its own, nothing twice. With
        weights, drawn by them.
        """
        if self.weights is not None:
            g = torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + n)
            return self.weights.multinomial(self.size, replacement=True, generator=g).tolist()
        chosen: list[int] = []
        epoch, offset = divmod(n * self.size, len(self.clips))
        while len(chosen) < self.size:
            g = torch.Generator().manual_seed(self.recipe.seed + epoch)
            order = torch.randperm(len(self.clips), generator=g).tolist()
            chosen += order[offset : offset + self.size - len(chosen)]
            epoch, offset = epoch + 1, 0
        return chosen

    def __getitem__(self, n: int) -> tuple[Batch, Remade]:
        d = self.recipe.denoiser
        g = torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + n)
        shortest, longest = d.min_frames // d.frames_per_token, d.max_frames // d.frames_per_token
        frames = d.frames_per_token * int(torch.randint(shortest, longest + 1, (), generator=g))
        seeds = torch.randint(2**62, (self.size,), generator=g).tolist()
        size = math.ceil(frames * self.hop * max(d.speeds)) + TAPS
        remade: list[tuple[int, torch.Tensor, float, float]] = []
        rows: list[Batch] = []
        for clip, seed in list(zip(self.places(n), seeds, strict=True))[self.rank :: self.world_size]:
            row, recipe = self._row(clip, frames, size, torch.Generator().manual_seed(seed))
            if recipe is not None:
                remade.append((len(rows), *recipe))
            rows.append(row)
        batch = Batch(**{f.name: torch.stack([getattr(row, f.name) for row in rows]) for f in fields(Batch)})
        waves = torch.stack([waves for _, waves, _, _ in remade]) if remade else torch.zeros(0, 2, size)
        speeds, gains = (torch.tensor([made[k] for made in remade], dtype=torch.float32) for k in (2, 3))
        return batch, Remade(
            torch.tensor([made[0] for made in remade], dtype=torch.long), waves, speeds, gains
        )

    def _row(
        self, clip: int, frames: int, size: int, g: torch.Generator
    ) -> tuple[Batch, tuple[torch.Tensor, float, float] | None]:
        """Return one row, without the batch dimension, and where its mel is to be made: two waveforms (2, size), the speed of the first and the gain of the second."""
        d = self.recipe.denoiser
        embeds, is_text = self._conditions(clip, g)
        weights = torch.ones(MAX_SET)
        shares = torch.tensor([d.mix_share, SET_SHARE, 1 - d.cond_dropout_prob])
        mixing, two, kept = (torch.rand(3, generator=g) < shares).tolist()
        speed = d.speeds[int(torch.randint(len(d.speeds), (), generator=g))]
        mel = self.clips.mel(clip)
        start = random_start(int(len(mel) / speed), frames, g)
        waves, gain = [], 0.0
        if mixing or speed != 1.0:
            waves = [
                crop(self.clips.waveform(clip), size, round(start * speed * self.hop)),
                torch.zeros(size),
            ]
        if mixing:
            other = int(torch.randint(len(self.clips), (), generator=g))
            wave = self.clips.waveform(other)
            waves[1] = crop(wave, size, random_start(len(wave), size, g))
            gain = 10 ** (MIX_DB * float(2 * torch.rand((), generator=g) - 1) / 20)
            weights = torch.tensor([min(1.0, 1 / gain), min(1.0, gain)])
            embeds[1], is_text[1] = (x[0] for x in self._conditions(other, g))
        told = kept and not mixing
        noise = torch.randn(embeds.shape, generator=g) / embeds.shape[-1] ** 0.5
        sigma = d.max_sigma * torch.rand(MAX_SET, generator=g)
        sigma[torch.rand(MAX_SET, generator=g) < CLEAN_SHARE] = 0.0
        row = Batch(
            mel=crop(mel - LOG_FLOOR, frames, start) + LOG_FLOOR,  # silence after its end
            noise=torch.randn(frames, mel.shape[1], generator=g),
            t=torch.sigmoid(torch.randn((), generator=g)),
            embeds=embeds,
            is_text=is_text,
            condition_noise=noise,
            sigma=sigma,
            weights=weights,
            mask=torch.tensor([kept, kept and (two or mixing)]),
            scalars=self._scalars(clip, speed, g) if told else torch.full((len(self.names),), math.nan),
        )
        return row, (torch.stack(waves), speed, gain) if waves else None

    def _scalars(self, clip: int, speed: float, g: torch.Generator) -> torch.Tensor:
        """Return what is told of a clip's sound (S,): each scalar or NaN."""
        told = self.scales.quantiles(sped_up(self.named[clip], speed))
        if "agreement" in self.names and (agreement := self.clips.agreement(clip)) is not None:
            told["agreement"] = agreement
        values = torch.tensor([told.get(name, math.nan) for name in self.names])
        some, *each = torch.rand(1 + len(self.names), generator=g).tolist()
        hidden = torch.tensor([some >= TOLD_SHARE or x >= EACH_TOLD_SHARE for x in each], dtype=torch.bool)
        return values.masked_fill(hidden, math.nan)

    def _conditions(self, clip: int, g: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Return two embeddings (2, D) of frames, captions, or for "hybrid" either, and which are texts (2,); of a share `pseudo_text` of frames the
        phrase of a generic bank that is nearest.
        """
        d = self.recipe.denoiser
        text = {"image": d.pseudo_text, "text": 1.0, "hybrid": 0.5}[d.condition]
        is_text = torch.rand(MAX_SET, generator=g) < text
        chosen = []
        for kind in is_text.tolist():
            embeds = self.clips.captions(clip) if kind and self.bank is None else self.clips.embeds(clip)
            one = embeds[int(torch.randint(len(embeds), (), generator=g))]
            chosen.append(self.bank.draw(one, NEAREST_PHRASES, g) if kind and self.bank is not None else one)
        return torch.stack(chosen), is_text
