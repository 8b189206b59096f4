"""The words, lines and names of docstrings, comments and docs."""

from __future__ import annotations

from tests.support.prose import long_lines, long_summaries, long_test_names, odd_words

MOST_IN_10000 = 5
# Today's numbers; each may only fall.
MOST_LONG_LINES, MOST_LONG_SUMMARIES, MOST_LONG_TEST_NAMES = 90, 53, 52


def test_odd_words_are_rare():
    words, places = odd_words()
    assert 10_000 * len(places) / words < MOST_IN_10000, "\n".join(places)


def test_long_lines_and_summaries_become_fewer():
    assert len(long_lines()) <= MOST_LONG_LINES
    assert len(long_summaries()) <= MOST_LONG_SUMMARIES


def test_long_names_of_tests_become_fewer():
    assert len(long_test_names()) <= MOST_LONG_TEST_NAMES
