"""Statistics of clips, summed exactly: neither order nor grouping changes a bit."""

from __future__ import annotations

import math
from typing import Any, Self

import numpy as np
import torch

# Values are summed as multiples of these. Mels and embeddings are fp16, so theirs are exact.
UNIT, SQUARE_UNIT, GAIN_UNIT = 2.0**-24, 2.0**-20, 2.0**-40
FIELDS = ("frames", "rows", "clips", "log_gain", "mel", "mel_squared", "embeds")


class Sums:
    """Sums over clips of mels and their squares per band, of embeddings, and of log gains, as integers."""

    def __init__(self, sums: dict[str, Any] | None = None) -> None:
        """Start from sums that `to_json` returned, or from nothing."""
        values = sums or {}
        self._sums = {
            name: np.array(values[name], object)
            if isinstance(values.get(name), list)
            else values.get(name, 0)
            for name in FIELDS
        }

    def add(self, mel: np.ndarray, embeds: np.ndarray, gain: float) -> None:
        """Add a clip: mel (F, M), embeddings (K, D)."""
        x = mel.astype(np.float64)
        self._add("frames", len(x))
        self._add("rows", len(embeds))
        self._add("clips", 1)
        self._add("log_gain", round(math.log(gain) / GAIN_UNIT))
        self._add("mel", _whole(x, UNIT))
        self._add("mel_squared", _whole(x**2, SQUARE_UNIT))
        self._add("embeds", _whole(embeds.astype(np.float64), UNIT))

    def __iadd__(self, other: Self) -> Self:
        for name, value in other._sums.items():
            self._add(name, value)
        return self

    def _add(self, name: str, value: Any) -> None:
        self._sums[name] = self._sums[name] + value

    def to_json(self) -> dict[str, Any]:
        """Return the sums as integers of any size."""
        return {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in self._sums.items()}

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return float32 `mel_mean`, `mel_std` (M,), `image_mean` (D,) and `gain` ()."""
        sums = self._sums
        mean = _mean(sums["mel"], sums["frames"], UNIT)
        variance = _mean(sums["mel_squared"], sums["frames"], SQUARE_UNIT) - mean**2
        values = {
            "mel_mean": mean,
            "mel_std": np.sqrt(np.maximum(variance, 1e-6)),
            "image_mean": _mean(sums["embeds"], sums["rows"], UNIT),
            "gain": np.exp(sums["log_gain"] * GAIN_UNIT / sums["clips"]),
        }
        return {name: torch.tensor(value, dtype=torch.float32) for name, value in values.items()}


def _whole(values: np.ndarray, unit: float) -> np.ndarray:
    """Return the sums over rows as Python integers (M,), in multiples of `unit`."""
    return np.rint(values / unit).astype(np.int64).sum(0).astype(object)


def _mean(total: np.ndarray, number: Any, unit: float) -> np.ndarray:
    """Return exact sums over a number, rounded once."""
    return np.array([int(value) / number * unit for value in total])
