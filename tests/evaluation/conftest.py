"""A judge of the four kinds of synthetic sounds."""

import pytest

from evaluation.embedders.classifier import train_classifier
from tests.support.evaluation_sounds import collection


@pytest.fixture(scope="session")
def judge():
    return train_classifier(*collection(16, seed=2), epochs=8)
