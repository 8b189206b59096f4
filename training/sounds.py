"""Where a step's sounds come from: waveforms on one device, of all training clips or of a step's own, and the log-mels that are made of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Self

import torch

from models.mel import MelSpectrogram
from training.data import Clips
from training.variants import TAPS, Tilt, at_speed, mixed


class Sounds:
    """`waves` (N, T) int16 as `prepare` wrote them, padded with silence to the longest."""

    def __init__(self, waves: torch.Tensor) -> None:
        self.waves = waves

    @classmethod
    def of(cls, clips: Clips, numbers: Sequence[int]) -> Self:
        """Return the sounds of clips."""
        waves = [clips.pcm(i) for i in numbers]
        return cls(torch.nn.utils.rnn.pad_sequence(waves, batch_first=True))

    def to(self, device: torch.device) -> Self:
        return type(self)(self.waves.to(device, non_blocking=True))

    def read(self, numbers: torch.Tensor, starts: torch.Tensor, size: int) -> torch.Tensor:
        """Return `size` samples (B, size) in [-1, 1] of sounds `numbers` (B,) from `starts` (B,) on; silence after their end."""
        numbers, starts = (x.to(self.waves.device, non_blocking=True) for x in (numbers, starts))
        at = starts[:, None] + torch.arange(size, device=starts.device)
        inside = at < self.waves.shape[1]
        return self.waves[numbers[:, None], at.clamp(max=self.waves.shape[1] - 1)] * inside / 32767


@dataclass(frozen=True)
class Sources:
    """What the sounds of B rows are made of: (B,) each, on the CPU.

    `clips` are numbers in `Sounds`, `starts` samples in them; `speeds` at which they are played; `tilts` of their spectrum in dB per octave; `others`,
    `other_starts` and `gains` are of a second sound, whose gain is 0 where there is none.
    """

    clips: torch.Tensor
    starts: torch.Tensor
    speeds: torch.Tensor
    tilts: torch.Tensor
    others: torch.Tensor
    other_starts: torch.Tensor
    gains: torch.Tensor

    def of_rows(self, rows: torch.Tensor) -> Sources:
        """Return the part of it that is of `rows` (N,)."""
        return Sources(*(getattr(self, f.name)[rows] for f in fields(self)))

    def mels(self, sounds: Sounds, mel: MelSpectrogram, tilt: Tilt, frames: int) -> torch.Tensor:
        """Return log-mels (B, frames, M) where `sounds`, `mel` and `tilt` are."""
        size, device = frames * mel.config.hop_length, sounds.waves.device
        waves = sounds.read(self.clips, self.starts, size)
        sped = (self.speeds != 1).nonzero()[:, 0]
        if len(sped):
            part = self.of_rows(sped)
            read = sounds.read(part.clips, part.starts, math.ceil(size * float(part.speeds.max())) + TAPS)
            waves[sped.to(device)] = at_speed(read, part.speeds.to(device), size)
        twofold = (self.gains > 0).nonzero()[:, 0]
        if len(twofold):
            part, rows = self.of_rows(twofold), twofold.to(device)
            second = sounds.read(part.others, part.other_starts, size)
            waves[rows] = mixed(waves[rows], second, part.gains.to(device))
        return tilt(mel(waves), self.tilts.to(device))
