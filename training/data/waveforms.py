"""Waveforms of all clips or of one step on one device, and the log-mels of a step made from them."""

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

FADE = 160  # samples of fade at both ends of a looped sound


class ClipWaveforms:
    """Waveforms `waves` (N, T) int16, padded with silence to the longest, and `lengths` (N,) in samples."""

    def __init__(self, waves: torch.Tensor, lengths: torch.Tensor) -> None:
        self.waves, self.lengths = waves, lengths

    @classmethod
    def of(cls, clips: Clips, numbers: Sequence[int]) -> Self:
        """Read the sounds of clips."""
        waves = [clips.pcm(i) for i in numbers]
        padded = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True)
        return cls(padded, torch.tensor([len(wave) for wave in waves]))

    def to(self, device: torch.device) -> Self:
        return type(self)(*(x.to(device, non_blocking=True) for x in (self.waves, self.lengths)))

    def read(
        self, numbers: torch.Tensor, starts: torch.Tensor, size: int, *, loop: bool = False
    ) -> torch.Tensor:
        """Return samples (B, size) in [-1, 1] of sounds `numbers` (B,) from `starts` (B,) on.

        Silence follows the end of a sound; with `loop` it starts again.
        """
        numbers, starts = (x.to(self.waves.device, non_blocking=True) for x in (numbers, starts))
        at = starts[:, None] + torch.arange(size, device=starts.device)
        if not loop:
            inside = at < self.waves.shape[1]
            return self.waves[numbers[:, None], at.clamp(max=self.waves.shape[1] - 1)] * inside / 32767
        lengths = self.lengths[numbers, None]
        first, at = at < lengths, at % lengths
        to_end = torch.where(first, lengths - 1 - at, torch.minimum(at, lengths - 1 - at))
        gain = torch.where(starts[:, None] + size > lengths, (to_end / FADE).clamp(max=1.0), 1.0)
        return self.waves[numbers[:, None], at] * gain / 32767


@dataclass(frozen=True)
class WaveformSources:
    """Parameters of the sounds of B rows: (B,) each, on the CPU."""

    clips: torch.Tensor  # numbers in `ClipWaveforms`
    starts: torch.Tensor  # in samples
    speeds: torch.Tensor  # of playback
    others: torch.Tensor  # second sounds
    other_starts: torch.Tensor
    gains: torch.Tensor  # of second sounds; 0: none
    paces: torch.Tensor  # this and the rest: see `MelVariants`
    pulses: torch.Tensor
    contrasts: torch.Tensor
    tilts: torch.Tensor

    def of_rows(self, rows: torch.Tensor) -> WaveformSources:
        """Return the parameters of `rows` (N,)."""
        return WaveformSources(*(getattr(self, f.name)[rows] for f in fields(self)))

    def mels(
        self, sounds: ClipWaveforms, mel: MelSpectrogram, variants: MelVariants, frames: int
    ) -> torch.Tensor:
        """Return log-mels (B, frames, M) on the device of `sounds`, `mel` and `variants`."""
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
            read = sounds.read(part.clips, part.starts, longest, loop=True)
            waves[sped.to(device)] = at_speed(read, part.speeds.to(device), size)
        twofold = (self.gains > 0).nonzero()[:, 0]
        if len(twofold):
            part, rows = self.of_rows(twofold), twofold.to(device)
            second = sounds.read(part.others, part.other_starts, size)
            waves[rows] = mixed(waves[rows], second, part.gains.to(device))
        return waves
