"""`clipsynth listen --score`: the paper's Table 2, with intervals and the agreement between raters."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from evaluation.listening_test.ratings import HIGHEST, LOWEST, SCALES, StoredRating
from evaluation.report.table import markdown_table

RESAMPLES = 2000
HEADERS = {"quality": "Quality ↑", "relevance": "Relevance ↑", "noise": "Noise ↓"}


@dataclass(frozen=True)
class Score:
    """A system's mean rating on a scale, 0 to 1 as in the paper's Table 2, with its 95 % interval.

    nan if there are no ratings.
    """

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f}–{self.high:.3f})" if self.n else "–"


def krippendorff_alpha(ratings: np.ndarray) -> float:
    """Return Krippendorff's alpha for ordinal ratings (raters, units): 1 is full agreement, 0 is chance.

    Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", C and D. A missing rating is nan. The
    result is nan if no unit has two ratings, or all ratings are equal.
    """
    units = ratings[:, (~np.isnan(ratings)).sum(0) > 1]
    values = np.unique(units[~np.isnan(units)])
    if len(values) < 2:
        return float("nan")
    counts = np.stack([(units == value).sum(0) for value in values])  # (values, units)
    paired = counts.sum(0)
    coincidences = (counts / (paired - 1)) @ counts.T - np.diag((counts / (paired - 1)).sum(1))
    totals = coincidences.sum(1)
    places = np.cumsum(totals) - totals / 2  # the mean rank of a value
    distances = np.square(places[:, None] - places)
    expected = (np.outer(totals, totals) * distances).sum() / (totals.sum() - 1)
    return float(1 - (coincidences * distances).sum() / expected)


def score(answers: Sequence[StoredRating], scale: str, *, seed: int = 0) -> dict[str, Score]:
    """Return {system: score} on one scale.

    Intervals resample raters and queries separately (Owen 2007, "The pigeonhole bootstrap").
    """
    given = [a for a in answers if a.scale == scale]
    raters, queries = _places(a.rater for a in given), _places(a.query for a in given)
    rng = np.random.default_rng(seed)
    rater_weights, query_weights = (_resample(rng, len(names)) for names in (raters, queries))
    scores = {}
    for system in dict.fromkeys(a.system for a in answers):
        own = [a for a in given if a.system == system]
        if not own:
            scores[system] = Score(np.nan, np.nan, np.nan, 0)
            continue
        values = np.array([(a.value - LOWEST) / (HIGHEST - LOWEST) for a in own])
        by_rater = rater_weights[:, [raters[a.rater] for a in own]]
        weights = by_rater * query_weights[:, [queries[a.query] for a in own]]
        drawn = weights[weights.sum(1) > 0]
        low, high = np.quantile(drawn @ values / drawn.sum(1), [0.025, 0.975])
        scores[system] = Score(float(values.mean()), float(low), float(high), len(own))
    return scores


def _places(names: Iterable[str]) -> dict[str, int]:
    """Return {name: index} of the different names."""
    return {name: n for n, name in enumerate(sorted(set(names)))}


def _resample(rng: np.random.Generator, size: int) -> np.ndarray:
    """Return (RESAMPLES, size): how often each item comes in `size` draws with replacement."""
    if not size:
        return np.zeros((RESAMPLES, 0), int)
    return rng.multinomial(size, np.full(size, 1 / size), RESAMPLES)


def rater_agreement(answers: Sequence[StoredRating], scale: str) -> float:
    """Return Krippendorff's alpha of one scale, over items."""
    given = [a for a in answers if a.scale == scale]
    raters, items = _places(a.rater for a in given), _places(a.item for a in given)
    ratings = np.full((len(raters), len(items)), np.nan)
    for a in given:
        ratings[raters[a.rater], items[a.item]] = a.value
    return krippendorff_alpha(ratings)


def to_markdown(answers: Sequence[StoredRating]) -> str:
    """Return Table 2 of the ratings.

    Raises:
        ValueError: there are no ratings.
    """
    if not answers:
        raise ValueError("there are no ratings yet")
    scores = {scale: score(answers, scale) for scale in SCALES}
    rows = []
    for system in sorted({a.system for a in answers}):
        own = [scores[scale][system] for scale in SCALES]
        rows.append([system, *map(str, own), str(sum(s.n for s in own))])
    rows.append(["*Krippendorff's α*", *(f"{rater_agreement(answers, s):.2f}" for s in SCALES), ""])
    raters, queries = (len({getattr(a, name) for a in answers}) for name in ("rater", "query"))
    note = (
        f"{raters} raters, {queries} queries. Ratings 1 to 5 as (r - 1) / 4; 95 % intervals resample raters "
        "and queries; α of ordinal ratings, nan if it cannot be computed."
    )
    return markdown_table(["system", *(HEADERS[s] for s in SCALES), "ratings"], rows, "llllr", [note])
