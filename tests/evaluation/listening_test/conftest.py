"""Fixtures of a listening test: its folder, items and answers."""

import pytest

from evaluation.listening_test.design import (
    make_items,
    read_folder,
)
from evaluation.listening_test.ratings import RatingStore
from tests.support.rated_sounds import tone, write_manifest, write_sound


@pytest.fixture
def folder(tmp_path):
    """Two systems and two queries, at levels of their own."""
    rows = []
    for s, system in enumerate(("A", "B")):
        for q, query in enumerate(("a dog barking", "rain")):
            file = f"{system}-{q}.wav"
            write_sound(tmp_path / file, tone(0.01 * 4 ** (s + q)))
            rows.append((system, query, file))
    write_manifest(tmp_path, rows)
    return tmp_path


@pytest.fixture
def items(folder):
    return make_items(read_folder(folder), seed=0)


@pytest.fixture
def answers(tmp_path):
    return RatingStore(tmp_path / "answers.sqlite")
