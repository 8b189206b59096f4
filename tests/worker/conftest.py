"""Fixtures of the worker: engines of toy models."""

from __future__ import annotations

import pytest

from worker.engine import Engine


@pytest.fixture
def engines():
    made = []

    def make(model, *, limit=1000):
        made.append(Engine(model, limit=limit))
        return made[-1]

    yield make
    for engine in made:
        engine.stop()
