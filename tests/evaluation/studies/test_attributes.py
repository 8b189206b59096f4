import numpy as np
import pytest
from scipy.stats import spearmanr

from evaluation.studies.attributes import AttributeRow, findings, spearman

pytestmark = pytest.mark.slow


LEVELS = (0.1, 0.5, 0.9)


def row(measured, *, asked=0.5, query="0", attribute="pitch", heard="dog"):
    return AttributeRow(attribute, query, "dog", asked, measured, heard)


def test_rank_correlation_equals_scipys():
    rng = np.random.default_rng(0)
    for size in (3, 10, 50):
        a, b = rng.integers(0, 6, size) + np.arange(size), rng.normal(size=size)
        assert spearman(a, b) == pytest.approx(spearmanr(a, b).statistic)
    assert spearman([1, 2, 3], [4, 4, 4]) == 0


def test_ranks_count_within_queries_only():
    """Each query follows what was asked, from a base of its own; one goes against it."""
    follows = [row(100 * q + level, asked=level, query=str(q)) for q in range(3) for level in LEVELS]
    against = [row(-level, asked=level, query="3") for level in LEVELS]
    (found,) = findings(follows + against)
    assert found.rho.value == pytest.approx((1 + 1 + 1 - 1) / 4)
    assert found.rho.low < found.rho.value < found.rho.high
    assert (found.sounds, found.missing) == (12, 0)


def test_sounds_without_the_attribute_are_counted():
    rows = [row(level, asked=level) for level in LEVELS]
    rows += [row(None, asked=0.9), row(None, query="1"), row(1.0, query="1"), row(2.0, asked=0.9, query="1")]
    (found,) = findings(rows)
    assert found.rho.value == pytest.approx((1 + 0) / 2)
    assert found.missing == pytest.approx(2 / 7)


def test_leakage_is_the_accuracy_lost_at_the_extremes():
    heard = {0.1: "cat", 0.5: "dog", 0.9: "dog"}
    rows = [row(level, asked=level, query=str(q), heard=heard[level]) for q in range(4) for level in LEVELS]
    (found,) = findings(rows)
    assert found.leakage is not None
    assert found.leakage.value == pytest.approx(-0.5)
    (without,) = findings([row(1.0, asked=level) for level in (0.1, 0.9)])
    assert without.leakage is None
