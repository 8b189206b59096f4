"""Variants of training clips: played faster or slower, and mixed. What they do to a sound's attributes is known without measuring again."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction

import torch
from scipy.signal import resample_poly

from models.mel import MelSpectrogram
from training.cut import PEAK
from training.data import Clips

LARGEST_TERM = 20  # of the fraction by which a speed is approached
QUIET = 1e-4  # RMS below which a sound is not brought to the level of another


class Variants:
    """Log-mels of clips at any speed; those that were asked for once are kept (64 kB per 5 s)."""

    def __init__(self, clips: Clips, mel: MelSpectrogram) -> None:
        self.clips, self.mel_spectrogram = clips, mel
        self._kept: dict[tuple[int, float], torch.Tensor] = {}

    def mel(self, i: int, speed: float) -> torch.Tensor:
        """Return the log-mel (F, n_mels) of clip i at a speed; 2.0 is half as long and an octave higher."""
        if speed == 1.0:
            return self.clips.mel(i)
        if (i, speed) not in self._kept:
            ratio = Fraction(1 / speed).limit_denominator(LARGEST_TERM)
            wave = resample_poly(self.clips.waveform(i).numpy(), ratio.numerator, ratio.denominator)
            self._kept[i, speed] = self.mel_spectrogram(torch.from_numpy(wave).float()[None])[0].half()
        return self._kept[i, speed].float()


def sped_up(named: Mapping[str, float], speed: float) -> dict[str, float]:
    """Return the attributes, as `by_name` gives them, of a sound played at a speed: its frequencies and onsets per second rise with it."""
    changed = dict(named)
    for name in ("brightness", "pitch"):  # logarithms
        if name in changed:
            changed[name] += math.log(speed)
    if "density" in changed:
        changed["density"] *= speed
    return changed


def mixed(first: torch.Tensor, second: torch.Tensor, gain: float) -> torch.Tensor:
    """Return two waveforms (T,) together at a peak of `PEAK`: brought to one RMS, and then the second at `gain` times the first."""
    levels = [w.square().mean().sqrt().clamp(min=QUIET) for w in (first, second)]
    both = first / levels[0] + gain * second / levels[1]
    both = both - both.mean()
    return PEAK * both / both.abs().max().clamp(min=QUIET)
