"""Fixtures of training: the packaged encoder, and the tiny videos prepared with it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from models.networks.packaged import PackagedEncoder
from training.loop import Run, build_accelerator
from training.prepare.prepare import prepare
from training.recipe import load_recipe
from training.state import TrainingState

DEMO = Path(__file__).resolve().parents[2] / "recipes" / "demo.yaml"


@pytest.fixture(scope="session")
def encoder():
    return PackagedEncoder()


@pytest.fixture(scope="session")
def prepared(videos, encoder, tmp_path_factory):
    out = tmp_path_factory.mktemp("prepared")
    assert list(prepare(videos, out, encoder))[-1] == (6, 6)
    return out


@pytest.fixture
def stage(tmp_path):
    """A run of a stage and its state; a step costs nothing."""
    part = torch.nn.Linear(1, 1)
    state = TrainingState(tmp_path, {"part": part}, [torch.optim.SGD(part.parameters())])
    return Run("stage", tmp_path, load_recipe(DEMO), build_accelerator()), state
