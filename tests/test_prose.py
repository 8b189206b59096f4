"""The words, lines and names of docstrings, comments and docs."""

from __future__ import annotations

import re

from tests.support.prose import (
    ROOT,
    docstrings,
    long_lines,
    long_summaries,
    long_test_names,
    odd_words,
    tracked,
)

MOST_IN_10000 = 5


def test_odd_words_are_rare():
    words, places = odd_words()
    assert 10_000 * len(places) / words < MOST_IN_10000, "\n".join(places)


def test_lines_and_summaries_fit():
    assert long_lines() == []
    assert long_summaries() == []


def test_sections_of_docstrings_have_a_line_for_each_name():
    """As Google's style: `Args:` alone on its line."""
    begun = re.compile(r"^ *(Args|Attributes|Raises|Returns|Yields): |; \* ", re.MULTILINE)
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in tracked(".py")
        for line, text in docstrings(path)
        if begun.search(text)
    ]
    assert found == []


def test_names_of_tests_fit():
    assert long_test_names() == []


def test_links_in_documents_lead_to_files():
    links = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
    dead = [
        f"{path.relative_to(ROOT)}: {target}"
        for path in tracked(".md")
        for target in links.findall(path.read_text(encoding="utf-8"))
        if "://" not in target and not (path.parent / target).exists()
    ]
    assert dead == []
