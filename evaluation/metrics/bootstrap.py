"""Figures with 95 % intervals from a bootstrap over validation clips.

A clip brings all sounds made for it, of all seeds. Picks are drawn within classes, so class counts stay
equal. They are the same for all systems and kinds of query, so differences of figures have intervals too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Figure:
    """A figure, its 95 % interval, and its value in each resample (for differences; not saved)."""

    value: float
    low: float
    high: float
    replicates: np.ndarray = field(repr=False, compare=False)

    def as_dict(self) -> dict[str, float]:
        return {"value": self.value, "low": self.low, "high": self.high}


def draw_picks(labels: Sequence[str], resamples: int, seed: int = 0) -> np.ndarray:
    """Return (resamples, N) indices drawn with replacement, each from its own class."""
    rng = np.random.default_rng(seed)
    classes = np.asarray(labels)
    picks = np.empty((resamples, len(labels)), int)
    for label in sorted(set(labels)):
        places = np.flatnonzero(classes == label)
        picks[:, places] = places[rng.integers(len(places), size=(resamples, len(places)))]
    return picks


def figure(value: float, replicates: Sequence[float] | np.ndarray) -> Figure:
    """Return a figure with the interval of its replicates, shifted so that their mean is `value`.

    A resample has some clips twice, so its distances are biased; the shift removes that bias.
    """
    moved = np.asarray(replicates, float) - np.mean(replicates) + value
    low, high = np.quantile(moved, [0.025, 0.975])
    return Figure(float(value), float(low), float(high), moved)


def bootstrap(statistic: Callable[[np.ndarray], float], picks: np.ndarray) -> Figure:
    """Return `statistic`, a function of clip indices (N,), of all clips, with its interval."""
    everything = np.arange(picks.shape[1])
    return figure(statistic(everything), [statistic(row) for row in picks])


def mean_figure(values: Sequence[float] | np.ndarray, clip_of: Sequence[int], picks: np.ndarray) -> Figure:
    """Return the mean of `values`; value n belongs to clip `clip_of[n]`."""
    clips = picks.shape[1]
    sums = np.bincount(clip_of, weights=np.asarray(values, float), minlength=clips)
    counts = np.bincount(clip_of, minlength=clips)
    return figure(float(np.mean(values)), sums[picks].sum(1) / counts[picks].sum(1))


def difference(a: Figure, b: Figure) -> Figure:
    """Return a - b, resample by resample."""
    return figure(a.value - b.value, a.replicates - b.replicates)


def gap_closed(gap: Figure, baseline: Figure) -> Figure:
    """Return the per cent of a baseline's gap that a method closes: 100 (1 - gap / baseline).

    A gap is the `difference` of a system's figures for texts and for images. Below 0 the gap is wider. If the
    baseline's interval contains 0, the result's interval is unbounded.

    Raises:
        ValueError: the baseline's gap is 0.
    """
    if baseline.value == 0:
        raise ValueError("the baseline has no gap between text and image queries")
    value = 100 * (1 - gap.value / baseline.value)
    if baseline.low <= 0 <= baseline.high:
        return Figure(value, -np.inf, np.inf, np.full(len(gap.replicates), np.nan))
    replicates = 100 * (1 - gap.replicates / baseline.replicates)
    low, high = np.quantile(replicates, [0.025, 0.975])
    return Figure(value, float(low), float(high), replicates)
