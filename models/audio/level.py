"""Level, length and ends of waveforms: the same treatment for every sound."""

from __future__ import annotations

import numpy as np

PEAK = 0.5  # of training clips, as in AudioLDM
MAX_PEAK = 0.99  # louder outputs are scaled down to it
SILENT_PEAK = 1e-4  # -80 dB of full scale
FADE_S = 0.005  # at both ends of a sound, so that it does not click


def level(waveform: np.ndarray) -> tuple[np.ndarray, float]:
    """Return (T,) without DC at a peak of `PEAK`, and the applied gain; silence is not scaled."""
    centred = (waveform - waveform.mean()).astype(np.float32)
    peak = float(np.abs(centred).max())
    gain = PEAK / peak if peak >= SILENT_PEAK else 1.0
    return centred * np.float32(gain), gain


def fit(waveform: np.ndarray, duration_s: float, sample_rate: int) -> np.ndarray:
    """Return the first `duration_s` seconds of (T,), padded with silence."""
    length = round(duration_s * sample_rate)
    return np.pad(waveform[:length], (0, max(0, length - len(waveform))))


def towards_level(waveform: np.ndarray, other: np.ndarray, share: float) -> np.ndarray:
    """Return a waveform (T,) whose RMS in dB is moved to that of `other` by a share of their distance."""
    own, wanted = (float(np.sqrt(np.mean(np.square(w, dtype=np.float64)))) for w in (waveform, other))
    if min(own, wanted) < SILENT_PEAK:
        return waveform
    return waveform * np.float32(min((wanted / own) ** share, MAX_PEAK / np.abs(waveform).max()))


def fade_ends(waveform: np.ndarray, sample_rate: int, *, begin: bool = True) -> np.ndarray:
    """Return a waveform (T,) that begins and ends in silence, by a raised cosine of `FADE_S`.

    Args:
        begin: whether the beginning is faded too.
    """
    n = min(round(FADE_S * sample_rate), len(waveform) // 2)
    ramp = np.sin(np.linspace(0, np.pi / 2, n, endpoint=False, dtype=np.float32)) ** 2
    faded = waveform.copy()
    if begin:
        faded[:n] *= ramp
    faded[len(faded) - n :] *= ramp[::-1]
    return faded
