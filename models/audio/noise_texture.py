"""The grain of noise, for a mel that a denoiser has smoothed.

The levels of noise are never at rest: from one frame to the next a band of it moves by what its width and the window make it move by, whatever the noise. A denoiser
predicts means, so its rain and rotors come out stiller than any noise is, and so would their sound. As a video's film grain is taken off, coded as a level and put
on again (Norkin & Birkbeck 2018, "Film Grain Synthesis for AV1"), what is lacking is put on the mel here. Recordings lack none.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
import torch.nn.functional as F

from models.audio.harmonics import near_harmonics, ramp
from models.audio.mel import MelSpectrogram

STILL = (0.3, 0.5)  # share of noise's motion: below the first a band lacks grain, above the second none
FRAMES, BANDS = 61, 5  # around a place, over which its motion is a mean
STRENGTH = 1.7  # of grain: the fit gives a part of it, so that a mel at rest comes out moving as noise does
KNOWN = 1000  # frames of noise, after which it comes again


class _Noise(NamedTuple):
    levels: torch.Tensor  # (KNOWN, M), nepers above their mean in time
    motion: torch.Tensor  # (M,), mean square of their differences from frame to frame


def add_noise_texture(log_mel: torch.Tensor, mel: MelSpectrogram) -> torch.Tensor:
    """Return log-mels (B, F, n_mels), moving at least as noise does where they hold no tone; in float32.

    Each row is treated by itself, and the noise is always the same.
    """
    log_mel = log_mel.float()
    noise = _Noise(*(x.to(log_mel.device) for x in _noise(mel)))
    levels = noise.levels[torch.arange(log_mel.shape[1], device=log_mel.device) % KNOWN]
    return log_mel + STRENGTH * _lacking(log_mel, noise.motion) * levels


def _lacking(log_mel: torch.Tensor, motion: torch.Tensor) -> torch.Tensor:
    """Return how much of noise's grain log-mels (B, F, M) lack, 0 to 1: what brings the variance of their motion to noise's.

    It has no steps, for sounds must not change with the last digits of their mels.
    """
    moved = F.pad(log_mel.diff(dim=1).square() / motion, (0, 0, 1, 0))
    share = _mean(_mean(moved.transpose(1, 2), FRAMES).transpose(1, 2), BANDS)
    lacking = (1 - share).clamp(min=0).sqrt() * (1 - ramp(share, *STILL))
    return lacking * (1 - near_harmonics(log_mel))


def _mean(x: torch.Tensor, size: int) -> torch.Tensor:
    """Return the means of x (B, N, M) over `size` of its M, fewer at the ends."""
    return F.avg_pool1d(x, size, stride=1, padding=size // 2, count_include_pad=False)


@functools.lru_cache(maxsize=8)
def _noise(mel: MelSpectrogram) -> _Noise:
    config = mel.config
    samples = torch.randn(1, KNOWN * config.hop_length, generator=torch.Generator().manual_seed(0))
    levels = mel(samples.to(mel.window.device))[0].cpu()
    return _Noise(levels - levels.mean(0), levels.diff(dim=0).square().mean(0))
