"""Fixtures of training: the packaged encoder, and the tiny videos prepared with it."""

from __future__ import annotations

import pytest

from models.networks.packaged import PackagedEncoder
from training.prepare.prepare import prepare


@pytest.fixture(scope="session")
def encoder():
    return PackagedEncoder()


@pytest.fixture(scope="session")
def prepared(videos, encoder, tmp_path_factory):
    out = tmp_path_factory.mktemp("prepared")
    assert list(prepare(videos, out, encoder))[-1] == (6, 6)
    return out
