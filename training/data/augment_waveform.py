"""Vary training clips on their waveforms, many at once on any device: change their speed or mix two."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from models.audio.level import PEAK

TAPS = 16  # of the windowed sinc that interpolates between samples
FEW_PERCENT = 1.1  # up to this speed aliasing is negligible
QUIET = 1e-4  # smallest RMS by which a sound is scaled


def at_speed(waves: torch.Tensor, speeds: torch.Tensor, size: int) -> torch.Tensor:
    """Return the first `size` samples of waveforms (N, T) at `speeds` (N,), then silence.

    Speed 2.0 is twice as fast and an octave higher. Interpolates with a Hann-windowed sinc of `TAPS` samples,
    after a low-pass against aliasing.
    """
    fast = speeds > FEW_PERCENT
    if fast.any():
        waves = waves.index_put((fast,), _low_passed(waves[fast], speeds[fast]))
    position = torch.arange(size, device=waves.device) * speeds[:, None]  # (N, size), in samples
    whole = position.floor()
    share = (position - whole).clamp(1e-4, 1 - 1e-4)
    whole = whole.long()
    # sinc(share - tap) cos^2(pi (share - tap) / TAPS): all taps share one sine and one cosine.
    sine = (math.pi * share).sin() / math.pi
    turned = (2 * math.pi / TAPS * share).cos(), (2 * math.pi / TAPS * share).sin()
    read = torch.zeros_like(position)
    padded = F.pad(waves, (TAPS, max(0, math.ceil(size * float(speeds.max())) + TAPS - waves.shape[1])))
    for tap in range(1 - TAPS // 2, 1 + TAPS // 2):
        angle = 2 * math.pi * tap / TAPS
        window = 0.5 + 0.5 * (turned[0] * math.cos(angle) + turned[1] * math.sin(angle))
        weight = window / (share - tap) * (-1) ** (tap % 2)
        read.addcmul_(padded.gather(1, whole + (tap + TAPS)), weight * sine)
    return read


def _low_passed(waves: torch.Tensor, speeds: torch.Tensor) -> torch.Tensor:
    """Remove from waveforms (N, T) all frequencies above half the sample rate over `speeds` (N,)."""
    spectrum = torch.fft.rfft(waves)
    frequencies = torch.linspace(0, 1, spectrum.shape[1], device=waves.device)
    return torch.fft.irfft(spectrum * (frequencies * speeds[:, None] <= 1), n=waves.shape[1])


def mixed(first: torch.Tensor, second: torch.Tensor, gains: torch.Tensor) -> torch.Tensor:
    """Return sums (N, T) with peak `PEAK` of two waveforms of equal RMS, the second times `gains` (N,)."""
    levels = [w.square().mean(-1, keepdim=True).sqrt().clamp(min=QUIET) for w in (first, second)]
    both = first / levels[0] + gains[:, None] * second / levels[1]
    both = both - both.mean(-1, keepdim=True)
    return PEAK * both / both.abs().amax(-1, keepdim=True).clamp(min=QUIET)
