"""Variants of training clips that are made on their waveforms, many at a time on any device: played faster or slower, or mixed."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from models.audio.level import PEAK

TAPS = 16  # of the windowed sinc by which a waveform is read between its samples
FEW_PERCENT = 1.1  # up to this speed what is folded back is little
QUIET = 1e-4  # RMS below which a sound is not brought to the level of another


def at_speed(waves: torch.Tensor, speeds: torch.Tensor, size: int) -> torch.Tensor:
    """Return the first `size` samples of waveforms (N, T) played at `speeds` (N,); 2.0 is twice as fast and an octave higher. Silence after their end.

    Interpolates with a Hann-windowed sinc of `TAPS` samples, after a low-pass of what would be moved beyond half the sample rate.
    """
    fast = speeds > FEW_PERCENT
    if fast.any():
        waves = waves.index_put((fast,), _low_passed(waves[fast], speeds[fast]))
    places = torch.arange(size, device=waves.device) * speeds[:, None]  # (N, size), in samples
    whole = places.floor()
    share = (places - whole).clamp(1e-4, 1 - 1e-4)
    whole = whole.long()
    # sinc(share - tap) cos^2(pi (share - tap) / TAPS): the sine and the cosine of all taps are those of the first.
    sine = (math.pi * share).sin() / math.pi
    turned = (2 * math.pi / TAPS * share).cos(), (2 * math.pi / TAPS * share).sin()
    read = torch.zeros_like(places)
    padded = F.pad(waves, (TAPS, max(0, math.ceil(size * float(speeds.max())) + TAPS - waves.shape[1])))
    for tap in range(1 - TAPS // 2, 1 + TAPS // 2):
        angle = 2 * math.pi * tap / TAPS
        window = 0.5 + 0.5 * (turned[0] * math.cos(angle) + turned[1] * math.sin(angle))
        weight = window / (share - tap) * (-1) ** (tap % 2)
        read.addcmul_(padded.gather(1, whole + (tap + TAPS)), weight * sine)
    return read


def _low_passed(waves: torch.Tensor, speeds: torch.Tensor) -> torch.Tensor:
    """Return waveforms (N, T) without what is above half the sample rate over `speeds` (N,)."""
    spectrum = torch.fft.rfft(waves)
    places = torch.linspace(0, 1, spectrum.shape[1], device=waves.device)
    return torch.fft.irfft(spectrum * (places * speeds[:, None] <= 1), n=waves.shape[1])


def mixed(first: torch.Tensor, second: torch.Tensor, gains: torch.Tensor) -> torch.Tensor:
    """Return waveforms (N, T) together in pairs, at a peak of `PEAK`: brought to one RMS, and then the second at `gains` (N,) times the first."""
    levels = [w.square().mean(-1, keepdim=True).sqrt().clamp(min=QUIET) for w in (first, second)]
    both = first / levels[0] + gains[:, None] * second / levels[1]
    both = both - both.mean(-1, keepdim=True)
    return PEAK * both / both.abs().amax(-1, keepdim=True).clamp(min=QUIET)
