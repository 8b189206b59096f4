"""The words, lines and names of docstrings, comments and docs."""

from __future__ import annotations

from tests.support.prose import long_lines, long_summaries, long_test_names, odd_words

MOST_IN_10000 = 5


def test_odd_words_are_rare():
    words, places = odd_words()
    assert 10_000 * len(places) / words < MOST_IN_10000, "\n".join(places)


def test_lines_and_summaries_fit():
    assert long_lines() == []
    assert long_summaries() == []


def test_names_of_tests_fit():
    assert long_test_names() == []
