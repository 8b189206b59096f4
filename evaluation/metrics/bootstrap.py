"""Figures with 95 % intervals from a bootstrap over clips.

The unit is the validation clip that was asked for: it brings all its sounds, of all seeds, with it. Picks are drawn within classes, so that class counts stay equal, and are the same for all
systems and kinds of query, so that differences of two figures have intervals too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Figure:
    """A figure, its 95 % interval, and what it was in each resample (for differences; not written to files)."""

    value: float
    low: float
    high: float
    replicates: np.ndarray = field(repr=False, compare=False)

    def as_dict(self) -> dict[str, float]:
        return {"value": self.value, "low": self.low, "high": self.high}


def draw_picks(labels: Sequence[str], resamples: int, seed: int = 0) -> np.ndarray:
    """Return (resamples, N) places to take with replacement, each from its own class."""
    rng = np.random.default_rng(seed)
    classes = np.asarray(labels)
    picks = np.empty((resamples, len(labels)), int)
    for label in sorted(set(labels)):
        places = np.flatnonzero(classes == label)
        picks[:, places] = places[rng.integers(len(places), size=(resamples, len(places)))]
    return picks


def figure(value: float, replicates: Sequence[float] | np.ndarray) -> Figure:
    """Return the figure with the spread of its replicates around it.

    Resampled clips come twice, which distances take for a smaller spread: all replicates are shifted by that. So the interval is their quantiles, moved by what their mean differs from
    `value`.
    """
    moved = np.asarray(replicates, float) - np.mean(replicates) + value
    low, high = np.quantile(moved, [0.025, 0.975])
    return Figure(float(value), float(low), float(high), moved)


def bootstrap(statistic: Callable[[np.ndarray], float], picks: np.ndarray) -> Figure:
    """Return `statistic` of all clips, with its interval; it is called with places of clips (N,)."""
    everything = np.arange(picks.shape[1])
    return figure(statistic(everything), [statistic(row) for row in picks])


def mean_figure(values: Sequence[float] | np.ndarray, clip_of: Sequence[int], picks: np.ndarray) -> Figure:
    """Return the mean of `values`; value n came of clip `clip_of[n]`."""
    clips = picks.shape[1]
    sums = np.bincount(clip_of, weights=np.asarray(values, float), minlength=clips)
    counts = np.bincount(clip_of, minlength=clips)
    return figure(float(np.mean(values)), sums[picks].sum(1) / counts[picks].sum(1))


def difference(a: Figure, b: Figure) -> Figure:
    """Return a - b, resample by resample."""
    return figure(a.value - b.value, a.replicates - b.replicates)
