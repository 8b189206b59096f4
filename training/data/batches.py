"""Draw and make the batches of the denoiser.

The key (seed, step, row) decides every random choice, so a resumed or distributed run sees the same samples
as an uninterrupted one. The CPU draws the small tensors ahead of a step (`Draw`); the device of the network
reads and varies sounds and makes their mels (`BatchMaker`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Self

import torch
from torch.utils.data import Dataset

from models.audio.mel import MelSpectrogram
from models.conditioning.phrase_bank import PhraseBank
from training.data.attribute_labels import (
    AttributeLabeller,
    LabelOffsets,
    conditioning_scalars,
    draw_attribute_labels,
    draw_variant,
)
from training.data.augment_mel import MelVariants
from training.data.clips import Clips, random_start
from training.data.density import clip_densities
from training.data.waveforms import ClipWaveforms, WaveformSources
from training.loop import check_rows
from training.recipe import Recipe

MAX_SET = 2  # conditions of one sample in training
CLEAN_SHARE = 0.25  # of samples without noise on the condition
SET_SHARE = 0.2  # of samples with two frames of one clip
NEAREST_PHRASES = 5  # one of them may replace a frame
MIX_DB = 10.0  # largest difference of level between the two sounds of a mix


def sampling_weights(scores: torch.Tensor) -> torch.Tensor:
    """Return sampling probabilities (N,) for correspondence quantiles (N,): sigmoid((s - 0.3) / 0.1)."""
    weights = torch.sigmoid((scores - 0.3) / 0.1)
    return weights / weights.sum()


@dataclass(frozen=True)
class Batch:
    """Rows of one step, on one device."""

    mel: torch.Tensor  # (B, F, M)
    noise: torch.Tensor  # (B, F, M)
    t: torch.Tensor  # times (B,) in (0, 1)
    embeds: torch.Tensor  # (B, K, D) as encoded
    is_text: torch.Tensor  # (B, K)
    condition_noise: torch.Tensor  # (B, K, D) of unit expected norm, to scale by `sigma`
    sigma: torch.Tensor  # (B, K)
    weights: torch.Tensor  # (B, K): 1, or in a mix the amplitudes, with the larger scaled to 1
    mask: torch.Tensor  # (B, K), all False if the condition was dropped
    scalars: torch.Tensor  # labels (B, S) in 0..1, NaN without a label

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """All tensors, in the order above."""
        return tuple(getattr(self, f.name) for f in fields(self))

    def to(self, device: torch.device) -> Self:
        return type(self)(*(x.to(device, non_blocking=True) for x in self.tensors))


@dataclass(frozen=True)
class Draw:
    """Rows `rank`, `rank` + `world_size`, … of a micro-step of `size` rows, without their sounds.

    `small` holds the batch by name without `mel`, `noise` and `scalars`; `offsets` (B, S) are the input of
    `AttributeLabeller`. `sounds` are those of the drawn clips; None if the device keeps all of them.
    """

    frames: int
    sources: WaveformSources
    small: Mapping[str, torch.Tensor]
    offsets: torch.Tensor
    noise_seed: int
    size: int
    rank: int = 0
    world_size: int = 1
    sounds: ClipWaveforms | None = None


class BatchMaker:
    """Make the batches of draws on a device, which keeps the sounds of all clips if the draws have none."""

    def __init__(self, batches: Batches, device: torch.device) -> None:
        clips = batches.clips
        self.device = device
        self.mel = MelSpectrogram().to(device)
        self.variants = MelVariants(self.mel).to(device)
        self.label = AttributeLabeller(batches.offsets, self.variants).to(device)
        self.kept = ClipWaveforms.of(clips, range(len(clips))).to(device) if batches.keep else None

    def __call__(self, draw: Draw) -> Batch:
        """Return the batch.

        Raises:
            ValueError: the draw has no sounds, and none are kept here.
        """
        sounds = self.kept if draw.sounds is None else draw.sounds.to(self.device)
        if sounds is None:
            raise ValueError("the draw has no sounds, and none are kept")
        # Every process draws the noise of all rows, so that a row's noise does not depend on their number.
        g = torch.Generator(self.device).manual_seed(draw.noise_seed)
        noise = torch.randn(draw.size, draw.frames, self.mel.config.n_mels, generator=g, device=self.device)
        log_mel = draw.sources.mels(sounds, self.mel, self.variants, draw.frames)
        return Batch(
            mel=log_mel,
            noise=noise[draw.rank :: draw.world_size].contiguous(),
            scalars=self.label(draw.offsets.to(self.device, non_blocking=True), log_mel),
            **{name: x.to(self.device, non_blocking=True) for name, x in draw.small.items()},
        )


class Batches(Dataset[Draw]):
    """Draw the rows of this process; item n belongs to micro-step n. With `keep` draws hold no sounds."""

    def __init__(
        self,
        clips: Clips,
        recipe: Recipe,
        bank: PhraseBank | None = None,
        *,
        scalars: Sequence[str] | None = None,
        keep: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Check that the clips have the inputs of the recipe's `condition`.

        Args:
            bank: phrases for `pseudo_text`.
            scalars: labels that the network takes; default: `conditioning_scalars`.

        Raises:
            ValueError: a clip lacks the captions that it needs, or `world_size` does not divide the rows.
        """
        self.clips, self.recipe, self.keep = clips, recipe, keep
        self.rank, self.world_size = rank, world_size
        self._epoch = -1, torch.empty(0, dtype=torch.long)
        d = recipe.denoiser
        self.size = d.batch_size // d.gradient_accumulation_steps
        check_rows(self.size, world_size, "denoiser.batch_size / gradient_accumulation_steps")
        self.bank = bank
        mel = MelSpectrogram().config
        self.sample_rate, self.hop = mel.sample_rate, mel.hop_length
        self.offsets = LabelOffsets(
            clips, conditioning_scalars(recipe, clips) if scalars is None else scalars
        )
        self.cumulative = self._cumulative_weights()
        if d.condition != "image":
            bare = clips.without_captions()
            if len(bare):
                raise ValueError(
                    f"condition {d.condition!r} needs captions, {len(bare)} clips have none, e.g. "
                    f"{clips.index[int(bare[0])]['video']}; prepare with --captions"
                )

    def _cumulative_weights(self) -> torch.Tensor | None:
        """Return the cumulative weights (N,) of the clips; None if all weigh the same."""
        d, weights = self.recipe.denoiser, torch.ones(len(self.clips), dtype=torch.float64)
        if d.correspondence_weighting:
            weights *= self._correspondence_weights()
        if d.density_balance:
            weights /= clip_densities(self.clips, Path(self.recipe.run)).double() ** d.density_balance
        return weights.cumsum(0) if d.correspondence_weighting or d.density_balance else None

    def _correspondence_weights(self) -> torch.Tensor:
        """Return the sampling probability (N,) of each clip by its correspondence.

        Raises:
            ValueError: a clip has no score.
        """
        scores = [self.clips.correspondence(i) for i in range(len(self.clips))]
        known = [score for score in scores if score is not None]
        if len(known) < len(scores):
            raise ValueError("correspondence_weighting needs scores; run: clipsynth correspondence PREPARED")
        return sampling_weights(torch.tensor(known))

    def clip_numbers(self, n: int) -> list[int]:
        """Return the clips of micro-batch n of all processes: shuffled epochs, or drawn by weights."""
        if self.cumulative is not None:
            g = torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + n)
            at = torch.rand(self.size, dtype=torch.float64, generator=g) * self.cumulative[-1]
            drawn = torch.searchsorted(self.cumulative, at, right=True)
            return drawn.clamp(max=len(self.clips) - 1).tolist()
        chosen: list[int] = []
        epoch, offset = divmod(n * self.size, len(self.clips))
        while len(chosen) < self.size:
            chosen += self._order(epoch)[offset : offset + self.size - len(chosen)].tolist()
            epoch, offset = epoch + 1, 0
        return chosen

    def _order(self, epoch: int) -> torch.Tensor:
        """Return the order (N,) of the clips in an epoch, made once."""
        if self._epoch[0] != epoch:
            g = torch.Generator().manual_seed(self.recipe.seed + epoch)
            self._epoch = epoch, torch.randperm(len(self.clips), generator=g)
        return self._epoch[1]

    def describe(self, n: int) -> list[str]:
        """Return descriptions of the clips of micro-batch n of all processes, those of mixes included."""
        whole = copy(self)
        whole.keep, whole.rank, whole.world_size = True, 0, 1
        sources = whole[n].sources
        return [self.clips.describe(i) for i in torch.cat([sources.clips, sources.others]).unique().tolist()]

    def __getitem__(self, n: int) -> Draw:
        d = self.recipe.denoiser
        seed = self.recipe.seed * 1_000_003 + n
        g = torch.Generator().manual_seed(seed)
        unit = d.length_step or d.frames_per_token
        lengths = -(-d.min_frames // unit), d.max_frames // unit + 1
        frames = unit * int(torch.randint(*lengths, (), generator=g))
        frames -= frames % d.frames_per_token
        seeds = torch.randint(2**62, (self.size,), generator=g).tolist()
        mine = list(zip(self.clip_numbers(n), seeds, strict=True))[self.rank :: self.world_size]
        kind = {"image": "embeds", "text": "captions"}.get(d.condition)
        names = [name for name in (kind, None if self.keep else "waveform") if name]
        self.clips.ahead([clip for clip, _ in mine], names)
        rows = [self._row(clip, frames, torch.Generator().manual_seed(row_seed)) for clip, row_seed in mine]
        sources = WaveformSources(
            **{f.name: torch.tensor([made[f.name] for made, _ in rows]) for f in fields(WaveformSources)}
        )
        sounds = None
        if not self.keep:
            used, numbers = torch.cat([sources.clips, sources.others]).unique(return_inverse=True)
            sounds = ClipWaveforms.of(self.clips, used.tolist())
            sources = replace(sources, clips=numbers[: len(mine)], others=numbers[len(mine) :])
        small = {name: torch.stack([row[name] for _, row in rows]) for name in rows[0][1]}
        offsets = small.pop("offsets")
        return Draw(frames, sources, small, offsets, seed, self.size, self.rank, self.world_size, sounds)

    def _row(
        self, clip: int, frames: int, g: torch.Generator
    ) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
        """Return the fields of a row in `WaveformSources`, and its small fields in `Batch` with `offsets`."""
        d = self.recipe.denoiser
        shares = torch.tensor([d.mix_share, SET_SHARE, 1 - d.cond_dropout_prob])
        mixing, two, kept = (torch.rand(3, generator=g) < shares).tolist()
        labels = draw_attribute_labels(self.offsets.names, g) if kept and not mixing else set()
        variant = draw_variant(d, labels & self.offsets.named(clip).keys(), g)
        size = round(frames * self.hop * variant["speeds"])
        start = random_start(self._samples(clip), size, g)
        played = round(size * min(1, variant["paces"]))
        made: dict[str, float] = {
            "clips": clip,
            "starts": start,
            "others": clip,
            "other_starts": 0,
            "gains": 0.0,
            **variant,
        }
        embeds, is_text = self._conditions(clip, g)
        weights = torch.ones(MAX_SET)
        if mixing:
            other = int(torch.randint(len(self.clips), (), generator=g))
            gain = 10 ** (MIX_DB * float(2 * torch.rand((), generator=g) - 1) / 20)
            other_start = random_start(self._samples(other), size, g)
            made |= {"others": other, "other_starts": other_start, "gains": gain}
            weights = torch.tensor([min(1.0, 1 / gain), min(1.0, gain)])
            embeds[1], is_text[1] = (x[0] for x in self._conditions(other, g))
        sigma = d.max_sigma * torch.rand(MAX_SET, generator=g)
        sigma[torch.rand(MAX_SET, generator=g) < CLEAN_SHARE] = 0.0
        return made, {
            "t": torch.sigmoid(d.logit_mean + d.logit_std * torch.randn((), generator=g)),
            "embeds": embeds,
            "is_text": is_text,
            "condition_noise": torch.randn(embeds.shape, generator=g) / embeds.shape[-1] ** 0.5,
            "sigma": sigma,
            "weights": weights,
            "mask": torch.tensor([kept, kept and (two or mixing)]),
            "offsets": self.offsets(clip, labels, start, played, variant["speeds"]),
        }

    def _samples(self, clip: int) -> int:
        """Return the length of a clip in samples."""
        return round(self.clips.duration_s(clip) * self.sample_rate)

    def _conditions(self, clip: int, g: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Return two embeddings (2, D) of frames or captions of a clip, and which are texts (2,).

        A nearby phrase of the generic bank replaces a share `pseudo_text` of frames.
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
