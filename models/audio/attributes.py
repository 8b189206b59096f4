"""Attributes of a sound that no image shows, measured on the waveform.

The denoiser gets them as quantiles of the training clips.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np

# It imports its modules when they are used: scipy.signal takes a worker 1.5 s to import.
import scipy

WINDOW = 1024  # samples
FRAMES_PER_S = 100
FMIN_HZ, FMAX_HZ = 50.0, 2000.0
# YIN's threshold: the first dip of the difference function below it is the period.
APERIODIC = 0.1
VOICED_FLATNESS = 0.05  # frames with a lower spectral flatness count as tonal
ONSET_BANDS = 32
ONSET_DB = 1.5  # rise over 30 ms, mean over bands
ONSET_GAP = 3  # least frames between two onsets

# Attributes of a request. Loudness is a gain after the vocoder; the others are conditions of the denoiser.
NAMES = ("loudness", "brightness", "pitch", "noisiness", "density")
CONDITIONS = NAMES[1:]
PITCHED = 0.25  # share of a sound that must be tonal for it to have a pitch
GRID = 33  # quantiles of a scale


def measure(waveform: np.ndarray, sample_rate: int) -> dict[str, float]:
    """Return the attributes of a waveform (T,) as decoded, before its level was changed.

    `loudness_dbfs`: RMS, dB of full scale. `centroid_hz`: power-weighted mean frequency. `flatness`: median
        spectral
    flatness, 0 (tone) to 1 (noise). `voicing`: share of audible frames that are tonal. `f0_hz`: median
    fundamental of the tonal frames, 0 if there are none. `onsets_per_s`: onsets per second by spectral flux
    (Böck & Widmer 2013).
    """
    rms = float(np.sqrt(np.mean(waveform.astype(np.float32) ** 2)))
    frames, power = _framed(waveform, sample_rate)
    flatness, sounding = _flatness(power), _sounding(power)
    track = _track(frames, flatness, sounding, sample_rate)
    voiced = track > 0
    centroid = scipy.fft.rfftfreq(WINDOW, 1 / sample_rate) @ power.sum(0) / power.sum()
    return {
        "loudness_dbfs": round(20 * float(np.log10(max(rms, 1e-6))), 2),
        "centroid_hz": round(float(centroid), 1),
        "flatness": round(float(np.median(flatness[sounding])), 5),
        "voicing": round(float(voiced.sum() / sounding.sum()), 3),
        "f0_hz": round(float(np.median(track[voiced])) if voiced.any() else 0.0, 1),
        "onsets_per_s": round(_onsets(power) * sample_rate / len(waveform), 3),
    }


def pitch_track(waveform: np.ndarray, sample_rate: int) -> np.ndarray:
    """Return the fundamental frequency in Hz (F,) of each frame of a waveform (T,).

    There are `FRAMES_PER_S` frames; 0 where a frame is not tonal, NaN where it is silent.
    """
    frames, power = _framed(waveform, sample_rate)
    return _track(frames, _flatness(power), _sounding(power), sample_rate)


def pitch(track: np.ndarray) -> float | None:
    """Return the log of the median fundamental of a part (F,) of a `pitch_track`, or None.

    None where the part is hardly tonal.
    """
    voiced = track > 0
    if not voiced.any() or voiced.sum() < PITCHED * (~np.isnan(track)).sum():
        return None
    return math.log(np.median(track[voiced]))


def _framed(waveform: np.ndarray, sample_rate: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the frames (F, WINDOW) of a waveform (T,) and their power (F, WINDOW // 2 + 1)."""
    y = waveform.astype(np.float32)
    padded = np.pad(y, (0, max(0, WINDOW - len(y))))
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[:: sample_rate // FRAMES_PER_S]
    return frames, np.abs(scipy.fft.rfft(frames * np.hanning(WINDOW).astype(np.float32))) ** 2 + 1e-10


def _flatness(power: np.ndarray) -> np.ndarray:
    """Return the spectral flatness (F,) of frames' power (F, K)."""
    return np.exp(np.log(power).mean(1)) / power.mean(1)


def _sounding(power: np.ndarray) -> np.ndarray:
    """Return which frames (F,) are less than 40 dB below the loudest."""
    loudness = power.sum(1)
    return loudness > 1e-4 * loudness.max()


def _track(frames: np.ndarray, flatness: np.ndarray, sounding: np.ndarray, sample_rate: int) -> np.ndarray:
    track = np.where(sounding, 0.0, np.nan)
    voiced = sounding & (flatness < VOICED_FLATNESS)
    if voiced.any():
        track[voiced] = fundamentals(frames[voiced], sample_rate)
    return track


def fundamentals(frames: np.ndarray, sample_rate: int) -> np.ndarray:
    """Return the fundamental in Hz (F,) of frames (F, WINDOW) by YIN.

    de Cheveigné & Kawahara 2002, eq. 6-8 and steps 4-5.
    """
    half = frames.shape[1] // 2
    shortest, longest = int(sample_rate / FMAX_HZ), min(int(sample_rate / FMIN_HZ), half - 1)
    size = scipy.fft.next_fast_len(frames.shape[1] + half, real=True)
    energy = np.pad(np.cumsum(frames.astype(np.float64) ** 2, axis=1), ((0, 0), (1, 0)))
    spectrum = scipy.fft.rfft(frames, size) * scipy.fft.rfft(frames[:, :half], size).conj()
    correlation = scipy.fft.irfft(spectrum, size)[:, : longest + 2]
    lags = np.arange(longest + 2)
    difference = energy[:, half : half + 1] + energy[:, lags + half] - energy[:, lags] - 2 * correlation
    mean = np.cumsum(difference[:, 1:], axis=1) / lags[1:]
    normalised = np.concatenate(
        [np.ones((len(frames), 1)), difference[:, 1:] / np.maximum(mean, 1e-12)], axis=1
    )
    inner = normalised[:, shortest : longest + 1]
    before, behind = normalised[:, shortest - 1 : longest], normalised[:, shortest + 1 : longest + 2]
    dips = (inner <= before) & (inner < behind)
    low = dips & (inner < APERIODIC)
    best = np.where(low.any(1), low.argmax(1), np.where(dips, inner, np.inf).argmin(1))
    a, b, c = (x[np.arange(len(frames)), best] for x in (before, inner, behind))
    curvature = a - 2 * b + c
    shift = np.divide((a - c) / 2, curvature, out=np.zeros_like(b), where=curvature > 1e-9)
    return sample_rate / (best + shortest + np.clip(shift, -1, 1))


def _onsets(power: np.ndarray) -> int:
    """Return the number of onsets of a spectrum (F, K): peaks of its mean rise over three frames."""
    bands = np.stack([part.mean(1) for part in np.array_split(power, ONSET_BANDS, axis=1)], axis=1)
    decibels = 10 * np.log10(np.maximum(bands, 1e-6 * bands.max()))
    rise = np.maximum(decibels[3:] - decibels[:-3], 0).mean(1)
    least = {"height": ONSET_DB, "prominence": ONSET_DB, "distance": ONSET_GAP}
    return len(scipy.signal.find_peaks(np.pad(rise, 1), **least)[0])


def by_name(measured: Mapping[str, float]) -> dict[str, float]:
    """Return the measured attributes under the names of requests; a hardly tonal sound has no pitch."""
    named = {
        "loudness": measured["loudness_dbfs"],
        "brightness": math.log(max(measured["centroid_hz"], 1.0)),
        "noisiness": measured["flatness"],
        "density": measured["onsets_per_s"],
    }
    if measured["f0_hz"] > 0 and measured["voicing"] >= PITCHED:
        named["pitch"] = math.log(measured["f0_hz"])
    return named


def taken(grids: Collection[str], scalars: Collection[str]) -> tuple[str, ...]:
    """Return the attributes that a bundle accepts: each has a scale, and all but loudness a scalar."""
    return tuple(name for name in NAMES if name in grids and (name not in CONDITIONS or name in scalars))


class Scales:
    """The distribution of each attribute over the training clips, as `GRID` quantiles."""

    def __init__(self, grids: Mapping[str, Sequence[float]]) -> None:
        self.grids = {name: np.asarray(grid, np.float64) for name, grid in grids.items()}

    @classmethod
    def of(cls, clips: Iterable[Mapping[str, float]]) -> Scales:
        """Return the scales of clips' attributes, as `by_name` gives them; no scale where no clip has one."""
        values: dict[str, list[float]] = {}
        for clip in clips:
            for name, value in clip.items():
                values.setdefault(name, []).append(value)
        places = np.linspace(0, 1, GRID)
        return cls({name: np.quantile(values[name], places).tolist() for name in NAMES if name in values})

    def quantile(self, name: str, value: float) -> float:
        """Return the share of training clips, 0..1, with less of an attribute than `value`.

        Where several clips have the same value, the middle of their shares.
        """
        grid, places = self.grids[name], np.linspace(0, 1, len(self.grids[name]))
        below, above = np.searchsorted(grid, value, "left"), np.searchsorted(grid, value, "right")
        if above > below:
            return float((places[below] + places[above - 1]) / 2)
        return float(np.interp(value, grid, places))

    def value(self, name: str, quantile: float) -> float:
        """Return the value that a share `quantile` of the training clips stays below."""
        return float(np.interp(quantile, np.linspace(0, 1, len(self.grids[name])), self.grids[name]))

    def quantiles(self, named: Mapping[str, float]) -> dict[str, float]:
        """Return the quantile in 0..1 of each attribute that has a scale."""
        return {name: self.quantile(name, value) for name, value in named.items() if name in self.grids}

    def to_lists(self) -> dict[str, list[float]]:
        """Return the grids as a bundle's manifest keeps them."""
        return {name: [round(float(x), 6) for x in grid] for name, grid in self.grids.items()}
