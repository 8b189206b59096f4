"""Attributes of a sound that no picture shows, measured on the waveform alone. Stored per clip; no label, no text."""

from __future__ import annotations

import librosa
import numpy as np
from librosa.onset import onset_detect

FMIN_HZ, FMAX_HZ = 50.0, 2000.0
VOICED_FLATNESS = 0.05  # frames whose spectrum is peakier than this count as voiced


def measure(waveform: np.ndarray, sample_rate: int) -> dict[str, float]:
    """Return the attributes of a waveform (T,) as decoded, before its level was changed.

    `loudness_dbfs`: RMS, dB of full scale. `centroid_hz`: power-weighted mean frequency. `flatness`: median spectral flatness, 0 (tone) to 1 (noise).
    `voicing`: share of sounding frames that are tonal. `f0_hz`: median fundamental of those by YIN (de Cheveigné & Kawahara 2002), 0 where there
    are none. `onsets_per_s`: onsets by spectral flux (Böck & Widmer 2013), per second.
    """
    y = waveform.astype(np.float32)
    rms = float(np.sqrt(np.mean(y**2)))
    hop = sample_rate // 100
    spectrum = np.abs(librosa.stft(y, n_fft=1024, hop_length=hop))
    power = (spectrum**2).sum(1)
    frequencies = librosa.fft_frequencies(sr=sample_rate, n_fft=1024)
    flatness = librosa.feature.spectral_flatness(S=spectrum)[0]
    frame_power = (spectrum**2).sum(0)
    sounding = frame_power > 1e-4 * frame_power.max()
    voiced = sounding & (flatness < VOICED_FLATNESS)
    f0 = librosa.yin(y, fmin=FMIN_HZ, fmax=FMAX_HZ, sr=sample_rate, frame_length=1024, hop_length=hop)
    frames = min(len(f0), len(voiced))
    tonal = f0[:frames][voiced[:frames]]
    onsets = onset_detect(y=y, sr=sample_rate, hop_length=hop)
    return {
        "loudness_dbfs": round(20 * np.log10(max(rms, 1e-6)), 2),
        "centroid_hz": round(float((frequencies * power).sum() / max(power.sum(), 1e-12)), 1),
        "flatness": round(float(np.median(flatness[sounding])) if sounding.any() else 0.0, 5),
        "voicing": round(float(voiced.sum() / max(sounding.sum(), 1)), 3),
        "f0_hz": round(float(np.median(tonal)) if len(tonal) else 0.0, 1),
        "onsets_per_s": round(len(onsets) * sample_rate / len(y), 3),
    }
