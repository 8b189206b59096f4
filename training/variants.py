"""Variants of training clips: played faster or slower, and mixed, many at a time on any device. What a speed does to a sound's attributes is known
without measuring again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from models.waveform import PEAK

TAPS = 16  # of the windowed sinc by which a waveform is read between its samples
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
