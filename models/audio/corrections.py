"""Corrections of a vocoder's output: harmonics, noise texture and the mel itself.

Harmonics. A feed-forward vocoder sees frames, not time. Where the mel stands still, its output repeats with
every frame, so a steady tone of 221 Hz comes out at 200 Hz, a multiple of the frame rate. `add_harmonics`
removes each tonal peak of the mel from the output and adds it again as a sinusoid with continuous phase
(sinusoidal modelling: McAulay & Quatieri 1986; Serra & Smith 1990).

Noise texture. In real noise the level of a band changes from frame to frame, by an amount that follows from
the band's width and the window. A denoiser predicts means, so its noise is too smooth. `add_noise_texture`
adds the missing variation to the mel, as film grain is added to decoded video (Norkin & Birkbeck 2018).

Mel correction. `correct_to_mel` scales each band of each frame by the quotient of the requested mel and the
output's mel, and joins the frames again: alternating projections as in Griffin & Lim (1984), on the mel
instead of the magnitudes.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F

from models.audio.mel import MelSpectrogram

TIMES = 2  # more passes improve the mel, but neither class accuracy nor other resolutions
LARGEST = 3.0  # nepers (26 dB), the largest gain of one pass
MIN_OVERLAP = 1e-2  # of the windows' sum: the divisor is never smaller, so the ends stay finite


def correct_to_mel(
    waveforms: torch.Tensor, log_mel: torch.Tensor, mel: MelSpectrogram, times: int = TIMES
) -> torch.Tensor:
    """Return waveforms (B, T) whose log-mel is close to `log_mel` (B, F, n_mels); in float32.

    F frames stand for T samples. Rows are independent. Two FFTs per frame and pass: 4 ms for 4 s on one CPU
    core.
    """
    waveforms, log_mel = waveforms.float(), log_mel.float()

    # Bins that belong to a band. No band covers DC or half the sample rate.
    covered = (mel.filters.sum(1) > 0).float()
    for _ in range(times):
        spectrum = mel.spectrum(waveforms)[:, :, : log_mel.shape[1]]  # (B, K, F)
        missing = log_mel.transpose(1, 2) - mel.log_bands(spectrum.abs())
        gains = mel.spread(missing.clamp(-LARGEST, LARGEST)).exp() * covered[:, None]
        waveforms = _joined(spectrum * gains, mel, waveforms.shape[1])
    return waveforms


def rescaled(waveforms: torch.Tensor, gains: torch.Tensor, mel: MelSpectrogram) -> torch.Tensor:
    """Return waveforms (B, T) whose spectrum is multiplied by gains (B, n_fft // 2 + 1, F)."""
    spectrum = mel.spectrum(waveforms)[:, :, : gains.shape[2]]
    return _joined(spectrum * gains, mel, waveforms.shape[1])


def _joined(spectrum: torch.Tensor, mel: MelSpectrogram, size: int) -> torch.Tensor:
    """Return waveforms (B, size) from spectra (B, K, F) by overlap-add."""
    config, window = mel.config, mel.window.float()
    pad = (config.n_fft - config.hop_length) // 2
    ones = window.square().expand(1, spectrum.shape[2], -1)
    overlap = overlap_add(ones, config.hop_length).clamp(min=MIN_OVERLAP)
    pieces = torch.fft.irfft(spectrum.transpose(1, 2), config.n_fft) * window
    joined = (overlap_add(pieces, config.hop_length) / overlap)[:, pad : pad + size]
    return F.pad(joined, (0, size - joined.shape[1]))


def overlap_add(pieces: torch.Tensor, hop_length: int) -> torch.Tensor:
    """Return pieces (B, F, N) added at steps of `hop_length`, (B, (F - 1) * hop_length + N)."""
    batch, frames, length = pieces.shape
    hops = -(-length // hop_length)
    parts = F.pad(pieces, (0, hops * hop_length - length)).unflatten(2, (hops, hop_length))
    total = pieces.new_zeros(batch, frames + hops - 1, hop_length)
    for hop in range(hops):
        total[:, hop : hop + frames] += parts[:, :, hop]
    return total.flatten(1)[:, : (frames - 1) * hop_length + length]


SMOOTHING = 3  # frames over which magnitudes are smoothed
# Ramps from 0 to 1, in nepers. A band's level above its neighbours: here a tone passes from band to band.
EVEN = (-0.02, 0.02)
# Its level above the second neighbours (6 and 10 dB): here a tone comes in.
CONTRAST = (0.7, 1.1)
# Its level below the sound's largest magnitude (60 and 54 dB).
RANGE = (-6.9, -6.2)
STEADY = 5  # frames over which a frequency is averaged, weighted by the tone's share
# Weight of a frame without a tone in that mean.
TONELESS_WEIGHT = 1e-3
PER_BAND = 33  # frequencies per band in the table
# Turns between the first phases of two bands, so that no two start together.
PHASE = (math.sqrt(5) - 1) / 2


class Harmonics(NamedTuple):
    """Tones of log-mels: shares of the bands to remove (B, M, F), and the sinusoids (B, T)."""

    near: torch.Tensor
    sinusoids: torch.Tensor


class _Table(NamedTuple):
    """Response of the bands to a sinusoid of amplitude 1, at `PER_BAND` frequencies per inner band.

    Each (M - 2, PER_BAND).
    """

    frequencies: torch.Tensor  # Hz

    balance: torch.Tensor  # (band above - band below) / band itself; rising

    response: torch.Tensor  # of the band itself


def add_harmonics(waveforms: torch.Tensor, harmonics: Harmonics, mel: MelSpectrogram) -> torch.Tensor:
    """Return waveforms (B, T) whose tonal peaks are replaced by sinusoids; in float32.

    Rows are independent and nothing is random. A band holds one tone at a time.
    """
    if not harmonics.near.any():
        return waveforms.float()
    rest = rescaled(waveforms.float(), 1 - mel.spread(harmonics.near), mel)
    size = waveforms.shape[1]
    return rest + F.pad(harmonics.sinusoids, (0, max(0, size - harmonics.sinusoids.shape[1])))[:, :size]


def find_harmonics(
    log_mel: torch.Tensor, mel: MelSpectrogram, period: tuple[int, int] | None = None
) -> Harmonics:
    """Return the tones of log-mels (B, F, n_mels); F frames stand for F * hop_length samples.

    Args:
        period: first frame and number of frames of a loop. Each tone passes its ends in phase.
    """
    magnitudes = _smooth(log_mel.float().exp().transpose(1, 2))  # (B, M, F)
    shares = _tonal(magnitudes)
    size = log_mel.shape[1] * mel.config.hop_length
    return Harmonics(_near(shares), _sinusoids(magnitudes, shares, mel, size, period))


def near_harmonics(log_mel: torch.Tensor) -> torch.Tensor:
    """Return the largest tonal share of each band and its neighbours, (B, F, n_mels) in 0..1."""
    return _near(_tonal(_smooth(log_mel.float().exp().transpose(1, 2)))).transpose(1, 2)


def _near(shares: torch.Tensor) -> torch.Tensor:
    """Return the largest share of each band and its neighbours, (B, M, F)."""
    return F.max_pool1d(shares.transpose(1, 2), 3, 1, 1).transpose(1, 2)


def _smooth(magnitudes: torch.Tensor) -> torch.Tensor:
    """Return magnitudes (B, M, F) as the root of their mean power over `SMOOTHING` frames."""
    window = torch.hann_window(SMOOTHING + 2, periodic=False, device=magnitudes.device)[1:-1]
    rows = F.pad(magnitudes.square().flatten(0, 1)[:, None], (SMOOTHING // 2,) * 2, mode="replicate")
    return F.conv1d(rows, (window / window.sum())[None, None])[:, 0].sqrt().view_as(magnitudes)


def _tonal(magnitudes: torch.Tensor) -> torch.Tensor:
    """Return the tonal share of bands (B, M, F), 0 to 1: peaks above all four neighbours.

    Ramps instead of steps: sounds must not change with the last digits of their mels.
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
    """Map x linearly to 0..1: 0 at `low` and below, 1 at `high` and above."""
    return ((x - low) / (high - low)).clamp(0, 1)


def _sinusoids(
    magnitudes: torch.Tensor,
    shares: torch.Tensor,
    mel: MelSpectrogram,
    size: int,
    period: tuple[int, int] | None,
) -> torch.Tensor:
    """Return waveforms (B, size) with one sinusoid per tonal band.

    Its frequency and amplitude follow from the band and its neighbours. In a loop it is detuned, by at most
    half a turn per period, to whole turns.
    """
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
        if period:
            first, count = (frames * config.hop_length for frames in period)
            whole = turns[:, first + count - 1] - turns[:, first - 1]
            since = torch.arange(turns.shape[1], device=turns.device, dtype=torch.float64) - first
            turns = turns + (whole.round() - whole)[:, None] * since / count
        total[:, : amplitudes.shape[1]] += amplitudes * (2 * math.pi * turns.frac().float()).cos()
    return total


def _by_sample(x: torch.Tensor, hop_length: int) -> torch.Tensor:
    """Interpolate x (B, F), given at the middle of each frame, to samples (B, F * hop_length)."""
    known = F.pad(x[:, None], (1, 1), mode="replicate")[:, 0, :, None]

    fraction = (torch.arange(hop_length, device=x.device) + 0.5) / hop_length
    lines = torch.lerp(known[:, :-1], known[:, 1:], fraction)
    first = hop_length // 2
    return lines.flatten(1)[:, first : first + x.shape[1] * hop_length]


def _steady(frequency: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """Return frequencies (B, F) averaged over `STEADY` frames, so that a tone keeps its first frequency."""
    weight = (share + TONELESS_WEIGHT)[:, None]
    sums = (
        F.avg_pool1d(F.pad(x, (STEADY // 2,) * 2, mode="replicate"), STEADY, 1)[:, 0]
        for x in (weight * frequency[:, None], weight)
    )
    return torch.div(*sums)


def _interpolated(x: torch.Tensor, xs: torch.Tensor, *ys: torch.Tensor) -> list[torch.Tensor]:
    """Interpolate each of the `ys` (N,), given at rising `xs` (N,), at x (B, F)."""
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


# Share of real noise's motion: below the first value texture is missing, above the second it is not.
STILL = (0.3, 0.5)
FRAMES, BANDS = 61, 5  # over which motion is averaged
# The mel correction reproduces only a part of the texture; with this factor noise moves as real noise does.
STRENGTH = 1.7
KNOWN = 1000  # frames of noise; then it repeats


class _Noise(NamedTuple):
    levels: torch.Tensor  # (KNOWN, M), nepers above the mean over time

    motion: torch.Tensor  # (M,), mean square of the differences between frames


def add_noise_texture(
    log_mel: torch.Tensor, mel: MelSpectrogram, index: torch.Tensor | None = None
) -> torch.Tensor:
    """Return log-mels (B, F, n_mels) that vary at least as noise does, except at tones; in float32.

    Rows are independent, and the noise is always the same.

    Args:
        index: number of each frame (F,) in its sound; None for 0, 1, 2, …
    """
    log_mel = log_mel.float()
    noise = _Noise(*(x.to(log_mel.device) for x in _noise(mel)))
    numbers = torch.arange(log_mel.shape[1]) if index is None else index
    levels = noise.levels[numbers.to(log_mel.device) % KNOWN]
    return log_mel + STRENGTH * _lacking(log_mel, noise.motion) * levels


def _lacking(log_mel: torch.Tensor, motion: torch.Tensor) -> torch.Tensor:
    """Return the missing share of noise texture of log-mels (B, F, M), 0 to 1.

    Adding this share brings the variance of their motion to the variance of noise. Ramps instead of steps:
    sounds must not change with the last digits of their mels.
    """
    moved = F.pad(log_mel.diff(dim=1).square() / motion, (0, 0, 1, 0))
    share = _mean(_mean(moved.transpose(1, 2), FRAMES).transpose(1, 2), BANDS)
    lacking = (1 - share).clamp(min=0).sqrt() * (1 - ramp(share, *STILL))
    return lacking * (1 - near_harmonics(log_mel))


def _mean(x: torch.Tensor, size: int) -> torch.Tensor:
    """Return the means of x (B, N, M) over `size` neighbours in M, fewer at the ends."""
    return F.avg_pool1d(x, size, stride=1, padding=size // 2, count_include_pad=False)


@functools.lru_cache(maxsize=8)
def _noise(mel: MelSpectrogram) -> _Noise:
    config = mel.config
    samples = torch.randn(1, KNOWN * config.hop_length, generator=torch.Generator().manual_seed(0))
    levels = mel(samples.to(mel.window.device))[0].cpu()
    return _Noise(levels - levels.mean(0), levels.diff(dim=0).square().mean(0))
