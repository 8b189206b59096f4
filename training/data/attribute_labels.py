"""Label training rows with attributes and correspondence, as quantiles 0..1 among the training clips.

A row varies in its labelled attributes, and the labels are measured on the varied row. So the network learns
the effect of an attribute, and sounds without labels stay free of the variants (Karras et al. 2022, appendix
F.2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from models.audio.attributes import FRAMES_PER_S, GRID, WINDOW, Scales, by_name, pitch, pitch_track
from models.audio.mel import MelSpectrogram
from models.conditioning.attribute_targets import CORRESPONDENCE
from training.data.augment_mel import MelVariants
from training.data.clips import Clips
from training.recipe import DenoiserRecipe, Recipe

# Share of rows that may have attribute labels, and of those with a label of each attribute.
LABELLED_SHARE, ATTRIBUTE_KEEP_PROB = 0.5, 0.4
CORRESPONDENCE_KEEP_PROB = 0.6  # share of all rows
MAX_KEPT = 8192  # clips with measured values in memory
PULSED_SHARE = 0.5  # of the rows with a higher density
# Smallest value and resolution of the noisiness in `models.audio.attributes.measure`.
LEAST_FLATNESS, FLATNESS_STEP = 5e-6, 1e-5
MEASURED = ("brightness", "noisiness", "density")  # on the row's log-mel


def conditioning_scalars(recipe: Recipe, clips: Clips) -> tuple[str, ...]:
    """Return the recipe's scalars, without the correspondence if no clip has it."""
    return tuple(name for name in recipe.denoiser.scalars if name != CORRESPONDENCE or clips.scored)


def draw_attribute_labels(names: Sequence[str], g: torch.Generator) -> set[str]:
    """Return the scalars that a row has labels of; most rows have no attribute, like most requests."""
    some, *each = torch.rand(1 + len(names), generator=g).tolist()
    share = ATTRIBUTE_KEEP_PROB if some < LABELLED_SHARE else 0.0
    return {
        name
        for name, x in zip(names, each, strict=True)
        if x < (CORRESPONDENCE_KEEP_PROB if name == CORRESPONDENCE else share)
    }


def draw_variant(d: DenoiserRecipe, labels: set[str], g: torch.Generator) -> dict[str, float]:
    """Return the variant of a row by the names of `WaveformSources`: large changes only in `labels`."""
    usual = d.speeds[int(torch.randint(len(d.speeds), (), generator=g))]
    pitch, brightness, noisiness, density = (torch.rand(4, generator=g) * 2 - 1).tolist()
    pulsing = float(torch.rand((), generator=g)) < PULSED_SHARE
    variant = {"speeds": usual, "tilts": 0.0, "contrasts": 1.0, "paces": 1.0, "pulses": 0.0}
    if "pitch" in labels and d.attribute_semitones:
        variant["speeds"] = 2 ** (d.attribute_semitones * pitch / 12)
    if "brightness" in labels:
        variant["tilts"] = d.attribute_tilt_db * brightness
    if "noisiness" in labels:
        variant["contrasts"] = d.attribute_contrast**-noisiness
    if "density" in labels:
        variant["paces"] = d.attribute_tempo**density
        variant["pulses"] = d.attribute_pulse_rate * max(0.0, density) if pulsing else 0.0
    return variant


class LabelOffsets:
    """Offset per scalar: the value measured on a clip minus the value measured on its log-mel.

    Pitch cannot be read from a log-mel. Its offset is the pitch of the part that a row plays, because a clip
    may have many notes.
    """

    def __init__(self, clips: Clips, names: Sequence[str]) -> None:
        self.clips, self.names = clips, tuple(names)
        mel = MelSpectrogram()
        self._variants, self._sample_rate = MelVariants(mel), mel.config.sample_rate
        self._known: dict[int, list[float]] = {}
        self._tracks: dict[int, np.ndarray] = {}  # by clip; each takes a few milliseconds to make

    def named(self, clip: int) -> dict[str, float]:
        """Return the attributes of a clip under the names of requests; none if no label is known."""
        return by_name(self.clips.attributes(clip)) if self.names else {}

    def __call__(self, clip: int, labels: set[str], start: int, size: int, speed: float) -> torch.Tensor:
        """Return the offset per scalar (S,); NaN without a label or where the clip has no value.

        Args:
            start: first sample of the clip in the row.
            size: number of samples that the row plays, in a loop.
            speed: playback speed.
        """
        if not labels:
            return torch.full((len(self.names),), math.nan)
        if clip not in self._known:
            _make_room(self._known)
            self._known[clip] = self._measured(clip)
        offsets = [
            offset if name in labels else math.nan
            for name, offset in zip(self.names, self._known[clip], strict=True)
        ]
        if "pitch" in labels & self.named(clip).keys():
            offsets[self.names.index("pitch")] = self._pitch(clip, start, size) + math.log(speed)
        return torch.tensor(offsets)

    def _pitch(self, clip: int, start: int, size: int) -> float:
        """Return the log pitch of a part of a clip, or that of the whole clip if the part is hardly tonal."""
        if clip not in self._tracks:
            _make_room(self._tracks)
            self._tracks[clip] = pitch_track(self.clips.waveform(clip).numpy(), self._sample_rate)
        first, last = (at * FRAMES_PER_S // self._sample_rate for at in (start, start + size - WINDOW))
        part = self._tracks[clip].take(range(first, max(first, last) + 1), mode="wrap")
        found = pitch(part)
        return self.named(clip)["pitch"] if found is None else found

    def _measured(self, clip: int) -> list[float]:
        """Return the offset per scalar of a whole clip; NaN where it has no value."""
        named = {name: value for name, value in self.named(clip).items() if name in self.names}
        if "noisiness" in named:
            named["noisiness"] = math.log(max(named["noisiness"], LEAST_FLATNESS))
        log_mel = self.clips.mel(clip)[None]
        for name in set(MEASURED) & named.keys():
            named[name] -= float(getattr(self._variants, name)(log_mel))
        correspondence = self.clips.correspondence(clip)
        if correspondence is not None:
            named[CORRESPONDENCE] = correspondence
        return [named.get(name, math.nan) for name in self.names]


def _make_room(kept: dict[int, Any]) -> None:
    """Forget all if there are `MAX_KEPT` items, so that memory does not grow with the clips."""
    if len(kept) >= MAX_KEPT:
        kept.clear()


class AttributeLabeller(nn.Module):
    """Measure the scalars of a batch on its log-mels."""

    def __init__(self, offsets: LabelOffsets, variants: MelVariants) -> None:
        super().__init__()
        self.names, self.variants = offsets.names, variants
        grids = Scales.of(map(offsets.named, range(len(offsets.clips)))).grids
        even = torch.linspace(0, 1, GRID, dtype=torch.float64)
        self.levels = nn.Buffer(even.float())
        chosen = [torch.as_tensor(grids.get(name, even)) for name in self.names]
        self.grids = nn.Buffer(torch.stack(chosen or [even]).float())

    def forward(self, offsets: torch.Tensor, log_mel: torch.Tensor) -> torch.Tensor:
        """Return scalars (B, S) in 0..1 of log-mels (B, F, M); NaN where `offsets` (B, S) is NaN."""
        columns = []
        for i, name in enumerate(self.names):
            value = offsets[:, i]
            if name in MEASURED:
                value = value + getattr(self.variants, name)(log_mel)
            if name == "noisiness":
                value = (value.exp() / FLATNESS_STEP).round() * FLATNESS_STEP
            columns.append(self.quantiles(value.contiguous(), self.grids[i]))
        return torch.stack(columns, 1) if columns else offsets

    def quantiles(self, values: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
        """Return the quantiles 0..1 of values (B,) on a scale, like `Scales.quantile`; NaN for NaN."""
        below, above = (torch.searchsorted(grid, values, right=right) for right in (False, True))
        last = len(grid) - 1
        tied = (self.levels[below.clamp(max=last)] + self.levels[(above - 1).clamp(min=0)]) / 2
        low = (below - 1).clamp(0, last - 1)
        step = grid[low + 1] - grid[low]
        between = self.levels[low] + (values - grid[low]) / step.clamp(min=1e-12) / last
        quantile = torch.where(above > below, tied, between.clamp(0, 1))
        return torch.where(values.isnan(), math.nan, quantile)
