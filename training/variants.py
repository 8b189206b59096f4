"""Variants of training clips: played faster or slower, mixed, or with their spectrum tilted, many at a time on any device. What a speed or a tilt does to a
sound's attributes is known without measuring again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn

from models.mel import FLOOR, MelSpectrogram
from models.waveform import PEAK

TAPS = 16  # of the windowed sinc by which a waveform is read between its samples
LOG_FLOOR = math.log(FLOOR)  # the mel of digital silence
TILT_HZ = 1000.0  # frequency that a tilt leaves as it is
QUIET = 1e-4  # RMS below which a sound is not brought to the level of another


def at_speed(waves: torch.Tensor, speeds: torch.Tensor, size: int) -> torch.Tensor:
    """Return the first `size` samples of waveforms (N, T) played at `speeds` (N,); 2.0 is twice as fast and an octave higher. Silence after their end.

    Interpolates with a Hann-windowed sinc of `TAPS` samples. What speeds above 1 move beyond half the sample rate is folded back: for a few percent, little.
    """
    places = torch.arange(size, device=waves.device) * speeds[:, None]  # (N, size), in samples
    whole = places.floor().long()
    read = torch.zeros_like(places)
    for tap in range(1 - TAPS // 2, 1 + TAPS // 2):
        distance = places - whole - tap
        window = torch.cos(math.pi * distance / TAPS).square()
        at = whole + tap
        inside = (at >= 0) & (at < waves.shape[1])
        read += waves.gather(1, at.clamp(0, waves.shape[1] - 1)) * torch.sinc(distance) * window * inside
    return read


def sped_up(named: Mapping[str, float], speed: float) -> dict[str, float]:
    """Return the attributes, as `by_name` gives them, of a sound played at a speed: its frequencies and onsets per second rise with it."""
    changed = dict(named)
    for name in ("brightness", "pitch"):  # logarithms
        if name in changed:
            changed[name] += math.log(speed)
    if "density" in changed:
        changed["density"] *= speed
    return changed


def mixed(first: torch.Tensor, second: torch.Tensor, gains: torch.Tensor) -> torch.Tensor:
    """Return waveforms (N, T) together in pairs, at a peak of `PEAK`: brought to one RMS, and then the second at `gains` (N,) times the first."""
    levels = [w.square().mean(-1, keepdim=True).sqrt().clamp(min=QUIET) for w in (first, second)]
    both = first / levels[0] + gains[:, None] * second / levels[1]
    both = both - both.mean(-1, keepdim=True)
    return PEAK * both / both.abs().amax(-1, keepdim=True).clamp(min=QUIET)


class Tilt(nn.Module):
    """Spectra made brighter or duller by so many dB per octave, on log-mels. What is silent stays so."""

    def __init__(self, mel: MelSpectrogram) -> None:
        super().__init__()
        filters = mel.filters.cpu()
        frequencies = torch.linspace(0, mel.config.sample_rate / 2, len(filters))
        centres = (frequencies @ filters / filters.sum(0)).clamp(min=1.0)
        self.centres = nn.Buffer(centres)  # (M,) Hz
        self.widths = nn.Buffer(
            1 / filters.amax(0)
        )  # (M,): a band's filter has an area of its own, all the same
        self.octaves = nn.Buffer((centres / TILT_HZ).log2().clamp(min=-3.0))  # (M,)

    def forward(self, log_mel: torch.Tensor, tilts: torch.Tensor) -> torch.Tensor:
        """Return log-mels (B, F, M) tilted by (B,) dB per octave, all frames of a row alike."""
        change = tilts[:, None, None] * self.octaves * (math.log(10) / 20)
        return torch.where(log_mel > LOG_FLOOR, (log_mel + change).clamp(min=LOG_FLOOR), log_mel)

    def power(self, log_mel: torch.Tensor) -> torch.Tensor:
        """Return the mean power of each band (M,) of a log-mel (F, M)."""
        return (2 * log_mel).exp().mean(0) * self.widths

    def brightness(self, power: torch.Tensor, tilt: float) -> float:
        """Return by how much a tilt changes the brightness, the logarithm of the spectrum's centroid, of a sound whose bands have this power (M,)."""
        tilted = power * 10 ** (tilt * self.octaves / 10)
        after, before = (p @ self.centres / p.sum() for p in (tilted, power))
        return float((after / before).log())
