"""Check sounds and bring them to one length and sample rate; make fingerprints for caches."""

from __future__ import annotations

import hashlib
import json
from math import gcd

import numpy as np
from scipy.signal import resample_poly

from evaluation.interfaces import SAMPLE_RATE
from models.audio import level as sounds


def fingerprint(*parts: object) -> str:
    """Return 12 hex digits that change with any of `parts` (JSON values)."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:12]


def fit(waveform: np.ndarray, duration_s: float) -> np.ndarray:
    """Return the first `duration_s` seconds of (T,), padded with silence."""
    return sounds.fit(waveform, duration_s, SAMPLE_RATE)


def resample(waveform: np.ndarray, rate: int, new_rate: int) -> np.ndarray:
    """Return (T,) float32 at another sample rate in Hz."""
    if rate == new_rate:
        return waveform
    divisor = gcd(rate, new_rate)
    return np.asarray(resample_poly(waveform, new_rate // divisor, rate // divisor), np.float32)


def check_sound(waveform: np.ndarray, name: str) -> np.ndarray:
    """Return (T,) as float32.

    Raises:
        ValueError: not one channel, empty, or not finite; the message starts with `name`.
    """
    if waveform.ndim != 1 or not len(waveform):
        raise ValueError(f"{name}: a sound must be of shape (T,) with T > 0, got {waveform.shape}")
    if not np.isfinite(waveform).all():
        raise ValueError(f"{name}: {int((~np.isfinite(waveform)).sum())} samples are NaN or infinite")
    return waveform.astype(np.float32)


def rms_dbfs(waveform: np.ndarray) -> float:
    """Return the root mean square of (T,) in dB of full scale, at least -120."""
    return float(20 * np.log10(max(float(np.sqrt(np.mean(np.square(waveform, dtype=np.float64)))), 1e-6)))
