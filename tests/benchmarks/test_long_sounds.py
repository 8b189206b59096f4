"""Figures of long sounds compare like with like."""

from __future__ import annotations

import numpy as np

from benchmarks.model.long_sounds import RATE, laid, picked
from clipsynth.schemas.prompts import StoredItem


def test_each_class_is_picked_as_often():
    rows = np.repeat(np.arange(4), 5)[:, None]
    chosen = picked(rows, 4, 2, np.random.default_rng(0))
    assert np.bincount(chosen[:, 0]).tolist() == [2, 2, 2, 2]


def test_recordings_are_laid_where_items_are():
    items = [StoredItem(text="a", start_s=0, end_s=2), StoredItem(text="b", start_s=1, end_s=3)]
    mixed = laid(items, [np.ones(RATE, np.float32), np.full(4 * RATE, 2, np.float32)])
    assert [float(mixed[round(t * RATE)]) for t in (0.5, 1.5, 2.5)] == [1, 3, 2]
    assert len(mixed) == 3 * RATE
