"""What is exported is finite."""

from pathlib import Path

import pytest
import torch

from tests.support.planted import write_planted
from training.data.clips import load_clips
from training.export import build_index, export
from training.recipe import load_recipe

DEMO = Path(__file__).resolve().parents[2] / "recipes" / "demo.yaml"


@pytest.mark.parametrize("value", [float("nan"), 1e6])  # 1e6 is infinite in half precision
def test_weights_that_are_not_finite_are_not_exported(tmp_path, value):
    part = torch.nn.Linear(1, 1)
    part.bias.data.fill_(value)
    parts = (torch.nn.Linear(1, 1), part, torch.nn.Linear(1, 1), None)
    with pytest.raises(ValueError, match="not exported: bias of Linear is not finite"):
        export(load_recipe(DEMO), None, parts, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_an_embedding_that_is_not_finite_is_not_exported(tmp_path):
    clips = load_clips(write_planted(tmp_path / "clips", clips=6, dev=1, bad=4))
    with pytest.raises(ValueError, match=r"4\.mp4 at 0 s \(embeds not finite\)"):
        build_index(clips.train, {})
