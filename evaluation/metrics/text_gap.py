"""The text gap of any metric: how much worse a system trained on images is when it is asked in words."""

from __future__ import annotations

import numpy as np

from evaluation.metrics.bootstrap import Figure, difference


def text_gap(text: Figure, image: Figure) -> Figure:
    """Return M_text - M_image of one system; its sign is the metric's: below 0 where more is better and text is worse."""
    return difference(text, image)


def gap_closed(gap: Figure, baseline: Figure) -> Figure:
    """Return by how many per cent a method closes the gap of a baseline: 100 (1 - gap / gap of the baseline); 100 closes it, below 0 it is wider.

    Where the baseline's interval holds 0 there is no gap to close, and the interval is unbounded.

    Raises:
        ValueError: the baseline has no gap at all.
    """
    if baseline.value == 0:
        raise ValueError("the baseline has no gap between text and image queries that could be closed")
    value = 100 * (1 - gap.value / baseline.value)
    if baseline.low <= 0 <= baseline.high:
        return Figure(value, -np.inf, np.inf, np.full(len(gap.replicates), np.nan))
    replicates = 100 * (1 - gap.replicates / baseline.replicates)
    low, high = np.quantile(replicates, [0.025, 0.975])
    return Figure(value, float(low), float(high), replicates)
