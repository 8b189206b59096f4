"""Scores of planted ratings."""

import numpy as np
import pytest
from typer.testing import CliRunner

from clipsynth.cli import app
from evaluation.listening_test.ratings import SCALES, StoredRating
from evaluation.listening_test.scores import krippendorff_alpha, score, to_markdown


def planted(values):
    """Answers of raters to items; `values` {system: (raters, queries)}."""
    return [
        StoredRating(f"rater {r}", f"{system}-{q}", system, f"query {q}", scale, int(value))
        for system, table in values.items()
        for scale in SCALES
        for r, row in enumerate(table)
        for q, value in enumerate(row)
    ]


def test_planted_answers_give_their_means_and_intervals():
    rng = np.random.default_rng(0)
    table = rng.integers(1, 6, (6, 20))
    scores = score(planted({"A": table, "B": np.full((6, 20), 5)}), "quality")
    assert scores["A"].value == pytest.approx((table.mean() - 1) / 4)
    assert scores["A"].low < scores["A"].value < scores["A"].high
    assert scores["A"].high - scores["A"].low == pytest.approx(2 * 1.96 * 0.35 / 120**0.5, rel=0.6)
    assert (scores["B"].value, scores["B"].low, scores["B"].high, scores["B"].n) == (1, 1, 1, 120)


def test_raters_who_differ_widen_the_interval():
    between = np.repeat([[1], [5], [1], [5]], 20, axis=1)
    within = np.tile([1, 5], (4, 10))
    wide, narrow = (score(planted({"A": t}), "noise")["A"] for t in (between, within))
    assert wide.value == narrow.value == 0.5
    assert wide.high - wide.low > 1.5 * (narrow.high - narrow.low)


def test_alpha_has_the_published_values():
    # Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", example C: 4 observers, 12 units;
    # ordinal alpha .815.
    _ = np.nan
    reliability = np.array(
        [
            [1, 2, 3, 3, 2, 1, 4, 1, 2, _, _, _],
            [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, _, 3],
            [_, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, _],
            [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, _],
        ]
    )
    assert krippendorff_alpha(reliability) == pytest.approx(0.815, abs=5e-4)
    assert krippendorff_alpha(np.array([[1.0, 2, 5], [1, 2, 5]])) == 1.0
    assert np.isnan(krippendorff_alpha(np.array([[1.0, 2, 5]])))
    assert np.isnan(krippendorff_alpha(np.full((2, 3), 4.0)))


def test_the_command_prints_the_score(folder, items, answers):
    nobody = ["listen", str(folder), "--score", "--answers", str(folder / "none.sqlite")]
    with pytest.raises(FileNotFoundError, match="there are no ratings yet"):
        CliRunner().invoke(app, nobody, catch_exceptions=False)
    for item in items:
        answers.save("anna", item, "quality", 4)
    file = str(answers.path)
    result = CliRunner().invoke(
        app, ["listen", str(folder), "--score", "--answers", file], catch_exceptions=False
    )
    assert to_markdown(answers.every()).strip() in result.output


def test_the_table_is_the_papers():
    table = to_markdown(planted({"CLIPSynth": [[3, 3], [3, 3]], "CLIPRetriever": [[5, 5], [5, 5]]}))
    assert "| system | Quality ↑ | Relevance ↑ | Noise ↓ | ratings |" in table
    assert "| CLIPSynth | 0.500 (0.500–0.500) | 0.500 (0.500–0.500) | 0.500 (0.500–0.500) | 12 |" in table
    assert "| *Krippendorff's α* | 1.00 | 1.00 | 1.00 | |" in table
    assert "2 raters, 2 queries" in table
    first = to_markdown(
        [StoredRating("anna", "i", "A", "a dog", "quality", 4)]
    )  # ratings come one scale after the other
    assert "| A | 0.750 (0.750–0.750) | – | – | 1 |" in first
    with pytest.raises(ValueError, match="no ratings"):
        to_markdown([])
