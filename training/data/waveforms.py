"""Where a step's sounds come from: waveforms on one device, of all training clips or of a step's own, and the log-mels that are made of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Self

import torch

from models.audio.mel import MelSpectrogram
from training.data.augment_mel import MelVariants
from training.data.augment_waveform import TAPS, at_speed, mixed
from training.data.clips import Clips

FADE = 160  # samples towards a sound's end and from its beginning, where it is read around


class ClipWaveforms:
    """`waves` (N, T) int16 as `prepare` wrote them, padded with silence to the longest; `lengths` (N,) of them in samples."""

    def __init__(self, waves: torch.Tensor, lengths: torch.Tensor) -> None:
        self.waves, self.lengths = waves, lengths

    @classmethod
    def of(cls, clips: Clips, numbers: Sequence[int]) -> Self:
        """Return the sounds of clips."""
        waves = [clips.pcm(i) for i in numbers]
        padded = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True)
        return cls(padded, torch.tensor([len(wave) for wave in waves]))

    def to(self, device: torch.device) -> Self:
        return type(self)(*(x.to(device, non_blocking=True) for x in (self.waves, self.lengths)))

    def read(
        self, numbers: torch.Tensor, starts: torch.Tensor, size: int, *, around: bool = False
    ) -> torch.Tensor:
        """Return `size` samples (B, size) in [-1, 1] of sounds `numbers` (B,) from `starts` (B,) on; after their end silence, or with `around` their beginning."""
        numbers, starts = (x.to(self.waves.device, non_blocking=True) for x in (numbers, starts))
        at = starts[:, None] + torch.arange(size, device=starts.device)
        if not around:
            inside = at < self.waves.shape[1]
            return self.waves[numbers[:, None], at.clamp(max=self.waves.shape[1] - 1)] * inside / 32767
        lengths = self.lengths[numbers, None]
        first, at = at < lengths, at % lengths
        to_end = torch.where(first, lengths - 1 - at, torch.minimum(at, lengths - 1 - at))
        gain = torch.where(starts[:, None] + size > lengths, (to_end / FADE).clamp(max=1.0), 1.0)
        return self.waves[numbers[:, None], at] * gain / 32767


@dataclass(frozen=True)
class WaveformSources:
    """What the sounds of B rows are made of: (B,) each, on the CPU.

    `clips` are numbers in `ClipWaveforms`, `starts` samples in them; `speeds` at which they are played. `others`, `other_starts` and `gains` are of a second sound,
    whose gain is 0 where there is none. `paces`, `pulses`, `contrasts` and `tilts` are those of `MelVariants`.
    """

    clips: torch.Tensor
    starts: torch.Tensor
    speeds: torch.Tensor
    others: torch.Tensor
    other_starts: torch.Tensor
    gains: torch.Tensor
    paces: torch.Tensor
    pulses: torch.Tensor
    contrasts: torch.Tensor
    tilts: torch.Tensor

    def of_rows(self, rows: torch.Tensor) -> WaveformSources:
        """Return the part of it that is of `rows` (N,)."""
        return WaveformSources(*(getattr(self, f.name)[rows] for f in fields(self)))

    def mels(
        self, sounds: ClipWaveforms, mel: MelSpectrogram, variants: MelVariants, frames: int
    ) -> torch.Tensor:
        """Return log-mels (B, frames, M) where `sounds`, `mel` and `variants` are."""
        log_mel = mel(self._waves(sounds, frames * mel.config.hop_length))
        for make, by, none in (
            (variants.paced, self.paces, 1),
            (variants.pulsed, self.pulses, 0),
            (variants.contrasted, self.contrasts, 1),
            (variants.tilted, self.tilts, 0),
        ):
            if (by != none).any():
                log_mel = make(log_mel, by.to(log_mel.device, non_blocking=True))
        return log_mel

    def _waves(self, sounds: ClipWaveforms, size: int) -> torch.Tensor:
        """Return waveforms (B, size), sped up and mixed."""
        device = sounds.waves.device
        waves = sounds.read(self.clips, self.starts, size)
        sped = (self.speeds != 1).nonzero()[:, 0]
        if len(sped):
            part = self.of_rows(sped)
            longest = math.ceil(size * float(part.speeds.max())) + TAPS
            read = sounds.read(part.clips, part.starts, longest, around=True)
            waves[sped.to(device)] = at_speed(read, part.speeds.to(device), size)
        twofold = (self.gains > 0).nonzero()[:, 0]
        if len(twofold):
            part, rows = self.of_rows(twofold), twofold.to(device)
            second = sounds.read(part.others, part.other_starts, size)
            waves[rows] = mixed(waves[rows], second, part.gains.to(device))
        return waves
