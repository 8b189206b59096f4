"""Continue a waveform with one that was made from its end."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from models.audio.level import MAX_PEAK

# The last part of the parent's sound that a continuation may change: half of it is a cross-fade, half is new.
OVERLAP_S = 0.5
# By so much the new sound is moved, so that its phase fits: a period of 100 Hz.
LARGEST_LAG_S = 0.01
LARGEST_GAIN = 10.0
# Frames of the median without the roughness of noise.
ROUGH_FRAMES = 9


def without_roughness(log_mel: torch.Tensor) -> torch.Tensor:
    """Return a log-mel (N, F, M) as a network would make it: the median over time of each band.

    A network makes smooth mels of noise, to which the vocoder adds the roughness. Near a rough mel it adds
    none, which is heard as a dull place.
    """
    half = ROUGH_FRAMES // 2
    padded = F.pad(log_mel.transpose(1, 2), (half, half), mode="replicate")
    return padded.unfold(2, ROUGH_FRAMES, 1).median(-1).values.transpose(1, 2)


def held_samples(size: int, sample_rate: int) -> int:
    """Return how many of a parent's samples the new sound also has."""
    return max(1, size - min(round(OVERLAP_S * sample_rate), size) // 2)


def continued(parent: np.ndarray, new: np.ndarray, start: int, size: int, sample_rate: int) -> np.ndarray:
    """Return the parent (S,), unchanged but for its last `OVERLAP_S`, continued to `size` samples.

    The new sound is brought to the parent's level, moved to the best correlation (Roucos & Wilgus 1985), and
    cross-faded at constant power.

    Args:
        new: a sound that begins at sample `start` of the parent and has the same log-mel up to
            `held_samples`.
    """
    largest = round(LARGEST_LAG_S * sample_rate)
    end = held_samples(len(parent), sample_rate)
    begin = min(max(start + largest, end - round(OVERLAP_S * sample_rate) // 2), end - 1)
    old = parent[begin:end].astype(np.float64)
    lags = [lag for lag in range(-largest, 1) if begin - start + lag >= 0] or [0]
    parts = np.stack([new[begin - start + lag :][: len(old)] for lag in lags]).astype(np.float64)
    norms = np.maximum(np.sqrt(np.square(parts).sum(1) * np.square(old).sum()), 1e-12)
    best = int(np.argmax(parts @ old / norms))
    likeness = float(np.clip(parts[best] @ old / norms[best], 0, 1))
    level = float(np.square(parts[best]).sum())
    gain = min(np.sqrt(np.square(old).sum() / level), LARGEST_GAIN) if level > 0 else 1.0
    moved = new[begin - start + lags[best] :][: size - begin]
    peak = float(np.abs(moved).max(initial=0.0))
    gain = min(gain, MAX_PEAK / peak) if peak else gain
    share = (np.arange(len(old)) + 0.5) / len(old)
    power = np.sqrt(share**2 + (1 - share) ** 2 + 2 * likeness * share * (1 - share))
    joined = np.concatenate([parent[:begin], moved * np.float32(gain)]).astype(np.float32)
    joined[begin:end] = ((1 - share) * old + share * gain * parts[best]) / power
    return joined
