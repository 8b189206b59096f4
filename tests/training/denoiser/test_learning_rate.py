from pathlib import Path

import pytest

from training.recipe import load_recipe
from training.state import learning_rate

DEMO = Path(__file__).resolve().parents[3] / "recipes" / "demo.yaml"


def test_the_learning_rate_warms_up_stays_and_falls_to_zero():
    d = load_recipe(
        DEMO, ["denoiser.steps=1000", "denoiser.warmup_steps=100", "denoiser.decay_share=0.2"]
    ).denoiser
    rates = [learning_rate(d, n) / d.learning_rate for n in (0, 99, 500, 800, 900, 999)]
    assert rates == pytest.approx([0.01, 1.0, 1.0, 1.0, 0.5, 0.0], abs=1e-4)
