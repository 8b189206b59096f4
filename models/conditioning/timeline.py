"""Where the windows of a sound lie among its tokens, and how loud each stretch of a timeline is."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch

from models.audio.level import MAX_PEAK

# Smallest share of a window in its own tokens: tokens of no other window follow it.
MIN_SHARE = 1e-4


class Stretch(NamedTuple):
    """A part of a sound, in seconds, whose share rises from 0 to 1 over `rise` and falls over `fall`.

    `items` are numbers of the prompts that sound in it; None for all. In a loop it may pass the loop's ends.
    """

    start_s: float
    end_s: float
    rise: tuple[float, float]
    fall: tuple[float, float]
    items: tuple[int, ...] | None = None

    @property
    def seconds(self) -> float:
        return round(self.end_s - self.start_s, 6)


class Plateau(NamedTuple):
    """A stretch of constant level: silent, at a loudness in dB of full scale, or as made (None)."""

    start_s: float
    end_s: float
    loudness_dbfs: float | None = None
    silent: bool = False


def plateaus_of(
    timeline: Sequence[Stretch], loudness: Callable[[tuple[int, ...] | None], float | None]
) -> list[Plateau]:
    """Return the plateaus between the fades; `loudness` returns that of a set of items."""
    return [
        Plateau(part.rise[1], part.fall[0], loudness(part.items) if part.items else None, part.items == ())
        for part in timeline
    ]


def tokens_of(
    window: Stretch, num_tokens: int, length: int, rate: float, *, loop: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the tokens of a window in the sound (L',) and its share at each (L', 1).

    Args:
        num_tokens: tokens of the window.
        length: tokens of the sound.
        rate: tokens per second.
    """
    first = round(window.start_s * rate)
    if not loop:
        first = max(0, min(first, length - num_tokens))
    places = torch.arange(first, first + num_tokens)[: None if loop else length]
    at = (places + 0.5) / rate
    shares = torch.ones(len(places))
    for (start, end), sign in ((window.rise, 1), (window.fall, -1)):
        if end > start:
            passed = ((at - start) / (end - start)).clamp(0, 1)
            shares = torch.minimum(shares, passed if sign > 0 else 1 - passed)
    return places % length, shares.clamp(min=MIN_SHARE)[:, None]


def silent_frames(plateaus: Sequence[Plateau], frames: int, rate: float, period_s: float) -> np.ndarray:
    """Return which of so many frames (F,) lie in silence, at `rate` frames per second."""
    at = (np.arange(frames) + 0.5) / rate
    return np.any([_inside(p, at, period_s) for p in plateaus if p.silent] or [at < 0], axis=0)


def at_levels(
    waveform: np.ndarray, plateaus: Sequence[Plateau], sample_rate: int, *, loop: bool
) -> np.ndarray:
    """Return a waveform (T,) at the levels of its plateaus, with lines between them; no peak above 0.99."""
    if not plateaus:
        return waveform
    at = np.arange(len(waveform)) / sample_rate
    period_s = len(waveform) / sample_rate
    times, gains = [], []
    for plateau in plateaus:
        gain = 0.0 if plateau.silent else 1.0
        if plateau.loudness_dbfs is not None:
            part = waveform[_inside(plateau, at, period_s)].astype(np.float64)
            rms = math.sqrt(np.square(part).mean()) if part.size else 0.0
            gain = 10 ** (plateau.loudness_dbfs / 20) / rms if rms > 0 else 1.0
        times += [plateau.start_s, max(plateau.start_s, plateau.end_s - 1e-6)]
        gains += [gain, gain]
    envelope = np.interp(at, times, gains, period=period_s if loop else None)
    levelled: np.ndarray = waveform * envelope.astype(np.float32)
    peak = float(np.abs(levelled).max(initial=0.0))
    return levelled * np.float32(min(1.0, MAX_PEAK / peak)) if peak else levelled


def _inside(plateau: Plateau, at: np.ndarray, period_s: float) -> np.ndarray:
    """Return which times lie in a plateau; one that passes the end of a loop continues at its beginning."""
    return np.any([(at + k >= plateau.start_s) & (at + k < plateau.end_s) for k in (0.0, period_s)], axis=0)
