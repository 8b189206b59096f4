"""What a row of a training batch is told of its sound beside the condition: attributes and agreement, as places in 0..1 among the training clips.

A row that is told an attribute is varied in it, and told what came out, measured on the varied row itself. So the network learns what the attribute does,
and nothing of the variants leaks into sounds of which nothing is told (Karras et al. 2022, appendix F.2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from models.audio.attributes import FRAMES_PER_S, GRID, WINDOW, Scales, by_name, pitch, pitch_track
from models.audio.mel import MelSpectrogram
from models.conditioning.attribute_targets import CORRESPONDENCE
from training.data.augment_mel import MelVariants
from training.data.clips import Clips
from training.recipe import DenoiserRecipe, Recipe

TOLD_SHARE, ATTRIBUTE_KEEP_PROB = 0.5, 0.4  # of samples: with attributes at all, and with each one then
CORRESPONDENCE_KEEP_PROB = 0.6  # of samples
PULSED_SHARE = 0.5  # of the rows that are made busier: by pulses as well
LEAST_FLATNESS, FLATNESS_STEP = 5e-6, 1e-5  # of what `models.attributes.measure` tells apart
MEASURED = ("brightness", "noisiness", "density")  # on the row's log-mel


def conditioning_scalars(recipe: Recipe, clips: Clips) -> tuple[str, ...]:
    """Return the recipe's scalars; "agreement" only where it was measured, for what was never told means nothing to a network that is told it."""
    measured = any(clips.agreement(i) is not None for i in range(len(clips)))
    return tuple(name for name in recipe.denoiser.scalars if name != CORRESPONDENCE or measured)


def draw_attribute_labels(names: Sequence[str], g: torch.Generator) -> set[str]:
    """Return which of the scalars a row is told. Most are told no attribute, as most requests ask for none."""
    some, *each = torch.rand(1 + len(names), generator=g).tolist()
    share = ATTRIBUTE_KEEP_PROB if some < TOLD_SHARE else 0.0
    return {
        name
        for name, x in zip(names, each, strict=True)
        if x < (CORRESPONDENCE_KEEP_PROB if name == CORRESPONDENCE else share)
    }


def draw_variant(d: DenoiserRecipe, told: set[str], g: torch.Generator) -> dict[str, float]:
    """Return how a row is varied, by the names of `Sources`: beyond what is usual only in what it is told."""
    usual = d.speeds[int(torch.randint(len(d.speeds), (), generator=g))]
    pitch, brightness, noisiness, density = (torch.rand(4, generator=g) * 2 - 1).tolist()
    pulsing = float(torch.rand((), generator=g)) < PULSED_SHARE
    variant = {"speeds": usual, "tilts": 0.0, "contrasts": 1.0, "paces": 1.0, "pulses": 0.0}
    if "pitch" in told and d.attribute_semitones:
        variant["speeds"] = 2 ** (d.attribute_semitones * pitch / 12)
    if "brightness" in told:
        variant["tilts"] = d.attribute_tilt * brightness
    if "noisiness" in told:
        variant["contrasts"] = d.attribute_contrast**-noisiness
    if "density" in told:
        variant["paces"] = d.attribute_pace**density
        variant["pulses"] = d.attribute_pulses * max(0.0, density) if pulsing else 0.0
    return variant


class Bases:
    """What is to be added to what the log-mel of a row shows of each scalar: what was measured of the row's clip, less what the clip's own log-mel shows.

    A log-mel shows no pitch: that is measured on the part of the clip that the row plays, for a clip may be of many notes.
    """

    def __init__(self, clips: Clips, names: Sequence[str]) -> None:
        self.clips, self.names = clips, tuple(names)
        self.named = [by_name(line["attributes"]) if names else {} for line in clips.index]
        mel = MelSpectrogram()
        self._variants, self._sample_rate = MelVariants(mel), mel.config.sample_rate
        self._known: dict[int, list[float]] = {}
        self._tracks: dict[int, np.ndarray] = {}  # by clip; a few milliseconds each to make

    def __call__(self, clip: int, told: set[str], start: int, size: int, speed: float) -> torch.Tensor:
        """Return of a row (S,) what is to be added to what it shows of each scalar; NaN for those that are not told, or that its clip does not have.

        Args:
            start: sample of the clip at which the row starts.
            size: samples of the clip that it plays, from its beginning again after its end.
            speed: at which it plays them.
        """
        if not told:
            return torch.full((len(self.names),), math.nan)
        if clip not in self._known:
            self._known[clip] = self._measured(clip)
        bases = [
            base if name in told else math.nan
            for name, base in zip(self.names, self._known[clip], strict=True)
        ]
        if "pitch" in told & self.named[clip].keys():
            bases[self.names.index("pitch")] = self._pitch(clip, start, size) + math.log(speed)
        return torch.tensor(bases)

    def _pitch(self, clip: int, start: int, size: int) -> float:
        """Return the pitch of a part of a clip that has one, the clip's own where the part is hardly tonal."""
        if clip not in self._tracks:
            self._tracks[clip] = pitch_track(self.clips.waveform(clip).numpy(), self._sample_rate)
        first, last = (at * FRAMES_PER_S // self._sample_rate for at in (start, start + size - WINDOW))
        part = self._tracks[clip].take(range(first, max(first, last) + 1), mode="wrap")
        found = pitch(part)
        return self.named[clip]["pitch"] if found is None else found

    def _measured(self, clip: int) -> list[float]:
        """Return of each scalar what was measured of a clip, less what its log-mel shows of it; NaN where it has none."""
        named = {name: value for name, value in self.named[clip].items() if name in self.names}
        if "noisiness" in named:
            named["noisiness"] = math.log(max(named["noisiness"], LEAST_FLATNESS))
        log_mel = self.clips.mel(clip)[None]
        for name in set(MEASURED) & named.keys():
            named[name] -= float(getattr(self._variants, name)(log_mel))
        agreement = self.clips.agreement(clip)
        if agreement is not None:
            named[CORRESPONDENCE] = agreement
        return [named.get(name, math.nan) for name in self.names]


class AttributeLabeller(nn.Module):
    """Makes the scalars of a batch."""

    def __init__(self, bases: Bases, variants: MelVariants) -> None:
        """Take the names of `bases`, and the scales of its clips."""
        super().__init__()
        self.names, self.variants = bases.names, variants
        grids = Scales.of(bases.named).grids
        even = torch.linspace(0, 1, GRID, dtype=torch.float64)
        self.places = nn.Buffer(even.float())
        chosen = [torch.as_tensor(grids.get(name, even)) for name in self.names]
        self.grids = nn.Buffer(torch.stack(chosen or [even]).float())

    def forward(self, bases: torch.Tensor, log_mel: torch.Tensor) -> torch.Tensor:
        """Return scalars (B, S) in 0..1, NaN where `bases` (B, S) are, of rows whose log-mels (B, F, M) are these."""
        columns = []
        for i, name in enumerate(self.names):
            value = bases[:, i]
            if name in MEASURED:
                value = value + getattr(self.variants, name)(log_mel)
            if name == "noisiness":
                value = (value.exp() / FLATNESS_STEP).round() * FLATNESS_STEP
            columns.append(self.places_of(value.contiguous(), self.grids[i]))
        return torch.stack(columns, 1) if columns else bases

    def places_of(self, values: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
        """Return the places in 0..1 of values (B,) on a scale, as `Scales.quantile` has them; NaN for NaN."""
        below, above = (torch.searchsorted(grid, values, right=right) for right in (False, True))
        last = len(grid) - 1
        tied = (self.places[below.clamp(max=last)] + self.places[(above - 1).clamp(min=0)]) / 2
        low = (below - 1).clamp(0, last - 1)
        step = grid[low + 1] - grid[low]
        between = self.places[low] + (values - grid[low]) / step.clamp(min=1e-12) / last
        place = torch.where(above > below, tied, between.clamp(0, 1))
        return torch.where(values.isnan(), math.nan, place)
