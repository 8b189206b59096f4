"""The text gap of a metric: how much worse a system trained on images is with text queries."""

from __future__ import annotations

import numpy as np

from evaluation.metrics.bootstrap import Figure, difference


def text_gap(text: Figure, image: Figure) -> Figure:
    """Return M_text - M_image of one system: below 0 if higher is better and text is worse."""
    return difference(text, image)


def gap_closed(gap: Figure, baseline: Figure) -> Figure:
    """Return the per cent of a baseline's gap that a method closes: 100 (1 - gap / baseline).

    Below 0 the gap is wider. If the baseline's interval contains 0, the result's interval is unbounded.

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
