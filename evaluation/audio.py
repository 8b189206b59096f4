"""What is done alike to every sound before it is compared: length, checks, loudness. And short fingerprints for caches."""

from __future__ import annotations

import hashlib
import json

import numpy as np

from evaluation.interfaces import SAMPLE_RATE
from models.audio import level as sounds


def fingerprint(*parts: object) -> str:
    """Return 12 hex digits that change with any of `parts` (JSON values)."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:12]


def fit(waveform: np.ndarray, duration_s: float) -> np.ndarray:
    """Return the first `duration_s` seconds of (T,), with silence after its end."""
    return sounds.fit(waveform, duration_s, SAMPLE_RATE)


def check_sound(waveform: np.ndarray, what: str) -> np.ndarray:
    """Return (T,) as float32.

    Raises:
        ValueError: not one channel, empty, or not finite; the message names `what`.
    """
    if waveform.ndim != 1 or not len(waveform):
        raise ValueError(f"{what}: a sound must be of shape (T,) with T > 0, got {waveform.shape}")
    if not np.isfinite(waveform).all():
        raise ValueError(f"{what}: {int((~np.isfinite(waveform)).sum())} samples are NaN or infinite")
    return waveform.astype(np.float32)


def rms_dbfs(waveform: np.ndarray) -> float:
    """Return the root mean square of (T,) in dB of full scale, at least -120."""
    return float(20 * np.log10(max(float(np.sqrt(np.mean(np.square(waveform, dtype=np.float64)))), 1e-6)))
