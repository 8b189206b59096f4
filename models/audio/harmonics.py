"""Tones of a mel as sinusoids of their own, for a vocoder has no clock.

A feed-forward network sees frames and not time: where its mel stands still its output repeats with every frame, so whatever tone is asked for comes out at a
multiple of the frame rate: an accordion's 221 Hz at 200. What stands out in the mel as a tone is therefore taken out of the vocoder's output and put there again by
oscillators whose phase runs on, as in sinusoidal modelling (McAulay & Quatieri 1986; Serra & Smith 1990); what does not stays the vocoder's.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F

from models.audio.mel import MelSpectrogram
from models.audio.mel_correction import rescaled

SMOOTHING = 3  # frames over which a peak must stand out
EVEN = (-0.02, 0.02)  # nepers by which a band is above its neighbours: between these it hands a tone over
CONTRAST = (0.7, 1.1)  # nepers (6 and 10 dB) by which it is above the second: between these a tone comes in
RANGE = (-6.9, -6.2)  # nepers (60 and 54 dB) from a sound's largest magnitude: likewise
STEADY = 5  # frames over which a frequency is a mean, by how much of a tone is there
FAINT = 1e-3  # weight of a frame without a tone in that
PER_BAND = 33  # frequencies that a peak in a band is told apart by
PHASE = (math.sqrt(5) - 1) / 2  # turns between the first phases of two bands: no two begin together


class _Table(NamedTuple):
    """What a sinusoid of amplitude 1 gives in the bands, for `PER_BAND` frequencies around each of the M - 2 inner ones: (M - 2, PER_BAND) each."""

    frequencies: torch.Tensor  # Hz
    balance: torch.Tensor  # of the band above less the band below, by the band's own; rising
    response: torch.Tensor  # of the band


def add_harmonics(waveforms: torch.Tensor, log_mel: torch.Tensor, mel: MelSpectrogram) -> torch.Tensor:
    """Return waveforms (B, T) with the tones of their log-mels (B, F, n_mels), F frames of T samples, as sinusoids; in float32.

    Each row is treated by itself, and nothing is random. A band holds one tone at a time.
    """
    magnitudes = _smooth(log_mel.float().exp().transpose(1, 2))  # (B, M, F)
    shares = _tonal(magnitudes)
    if not shares.any():
        return waveforms.float()
    rest = rescaled(waveforms.float(), 1 - mel.spread(_near(shares)), mel)
    return rest + _sinusoids(magnitudes, shares, mel, waveforms.shape[1])


def near_harmonics(log_mel: torch.Tensor) -> torch.Tensor:
    """Return how much of a tone log-mels (B, F, n_mels) hold in each band or the next to either side, (B, F, n_mels) in 0..1."""
    return _near(_tonal(_smooth(log_mel.float().exp().transpose(1, 2)))).transpose(1, 2)


def _near(shares: torch.Tensor) -> torch.Tensor:
    """Return the largest shares (B, M, F) of bands and of those next to them."""
    return F.max_pool1d(shares.transpose(1, 2), 3, 1, 1).transpose(1, 2)


def _smooth(magnitudes: torch.Tensor) -> torch.Tensor:
    """Return magnitudes (B, M, F) as the square root of their power's mean over `SMOOTHING` frames."""
    window = torch.hann_window(SMOOTHING + 2, periodic=False, device=magnitudes.device)[1:-1]
    rows = F.pad(magnitudes.square().flatten(0, 1)[:, None], (SMOOTHING // 2,) * 2, mode="replicate")
    return F.conv1d(rows, (window / window.sum())[None, None])[:, 0].sqrt().view_as(magnitudes)


def _tonal(magnitudes: torch.Tensor) -> torch.Tensor:
    """Return how much of a tone bands (B, M, F) hold, 0 to 1: those that stand out over the next to either side and clearly over the second.

    It has no steps, for sounds must not change with the last digits of their mels.
    """
    level = magnitudes.clamp(min=1e-9).log()
    padded = F.pad(level, (0, 0, 2, 2), mode="replicate")
    below2, below, above, above2 = (padded[:, i : i + level.shape[1]] for i in (0, 1, 3, 4))
    share = (
        ramp(level - torch.maximum(below, above), *EVEN)
        * ramp(level - torch.maximum(below2, above2), *CONTRAST)
        * ramp(level - level.amax((1, 2), keepdim=True), *RANGE)
    )
    share[:, [0, -1]] = 0.0
    return share


def ramp(x: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """Return x, 0 at `low` and below, 1 at `high` and above."""
    return ((x - low) / (high - low)).clamp(0, 1)


def _sinusoids(
    magnitudes: torch.Tensor, shares: torch.Tensor, mel: MelSpectrogram, size: int
) -> torch.Tensor:
    """Return waveforms (B, size): a sinusoid for each band with a tone, at the frequency and of the amplitude that the bands around it tell."""
    config = mel.config
    table = _Table(*(x.to(magnitudes.device) for x in _table(mel)))
    total = magnitudes.new_zeros(len(magnitudes), size)
    for band in shares.any(2).any(0).nonzero()[:, 0].tolist():
        below, own, above = (magnitudes[:, band + i] for i in (-1, 0, 1))
        known = table.balance[band - 1], table.frequencies[band - 1], table.response[band - 1]
        frequency, response = _interpolated((above - below) / own.clamp(min=1e-9), *known)
        share = shares[:, band]
        amplitudes, frequencies = (
            _by_sample(x, config.hop_length)[:, :size]
            for x in (share * own / response, _steady(frequency, share))
        )
        turns = (frequencies / config.sample_rate).cumsum(1, dtype=torch.float64) + band * PHASE
        total[:, : amplitudes.shape[1]] += amplitudes * (2 * math.pi * turns.frac().float()).cos()
    return total


def _by_sample(x: torch.Tensor, hop_length: int) -> torch.Tensor:
    """Return x (B, F), known at the middle of each frame of `hop_length` samples, by sample (B, F * hop_length): straight lines, level at the ends."""
    known = F.pad(x[:, None], (1, 1), mode="replicate")[:, 0, :, None]
    way = (torch.arange(hop_length, device=x.device) + 0.5) / hop_length
    lines = torch.lerp(known[:, :-1], known[:, 1:], way)
    first = hop_length // 2
    return lines.flatten(1)[:, first : first + x.shape[1] * hop_length]


def _steady(frequency: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """Return frequencies (B, F) as means over `STEADY` frames: what a tone begins with is what it goes on with."""
    weight = (share + FAINT)[:, None]
    sums = (
        F.avg_pool1d(F.pad(x, (STEADY // 2,) * 2, mode="replicate"), STEADY, 1)[:, 0]
        for x in (weight * frequency[:, None], weight)
    )
    return torch.div(*sums)


def _interpolated(x: torch.Tensor, xs: torch.Tensor, *ys: torch.Tensor) -> list[torch.Tensor]:
    """Return for x (B, F) what lies between the `ys` (N,) at the rising `xs` (N,)."""
    after = torch.searchsorted(xs, x.contiguous()).clamp(1, len(xs) - 1)
    low, high = xs[after - 1], xs[after]
    share = ((x - low) / (high - low).clamp(min=1e-9)).clamp(0, 1)
    return [torch.lerp(y[after - 1], y[after], share) for y in ys]


@functools.lru_cache(maxsize=8)
def _table(mel: MelSpectrogram) -> _Table:
    filters, window = mel.filters.float().cpu(), mel.window.float().cpu()
    sample_rate, n_fft, n_mels = (mel.config[name] for name in ("sample_rate", "n_fft", "n_mels"))
    centres = mel.centres.cpu()
    places = torch.linspace(0, 1, PER_BAND)
    frequencies = torch.lerp(centres[:-2, None], centres[2:, None], places)
    time = torch.arange(n_fft) / sample_rate
    tones = torch.cos(2 * math.pi * frequencies[..., None] * time)
    bands = torch.fft.rfft(tones * window).abs() @ filters  # (M - 2, PER_BAND, M)
    own = torch.arange(1, n_mels - 1)
    below, response, above = (bands[own - 1, :, own + i] for i in (-1, 0, 1))
    balance = ((above - below) / response.clamp(min=1e-9)).cummax(1).values
    return _Table(frequencies, balance, response)
