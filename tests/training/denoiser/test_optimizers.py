from pathlib import Path

import pytest
import torch

from models.networks.condition_encoder import ConditionEncoder
from models.networks.denoiser import Denoiser
from training.denoiser.flow_matching import FlowMatching
from training.denoiser.train import build_optimizers
from training.recipe import load_recipe
from training.state import learning_rate

DEMO = Path(__file__).resolve().parents[3] / "recipes" / "demo.yaml"


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_every_parameter_is_updated_by_one_optimizer(optimizer):
    model = FlowMatching(ConditionEncoder(embed_dim=8), Denoiser(dim=32, depth=1, heads=2, condition_dim=8))
    parameters = list(model.parameters())
    recipe = load_recipe(DEMO, [f"denoiser.optimizer={optimizer}"])
    optimizers = build_optimizers(recipe, model)
    held = [p for o in optimizers for group in o.param_groups for p in group["params"]]
    assert len(held) == len(parameters)
    assert {id(p) for p in held} == {id(p) for p in parameters}
    before = [p.detach().clone() for p in parameters]
    for p in parameters:
        p.grad = torch.randn_like(p)
    for o in optimizers:
        o.step()
    assert all(not torch.equal(a, b) for a, b in zip(before, parameters, strict=True))


def test_the_learning_rate_warms_up_stays_and_falls_to_zero():
    d = load_recipe(
        DEMO, ["denoiser.steps=1000", "denoiser.warmup_steps=100", "denoiser.decay_share=0.2"]
    ).denoiser
    rates = [learning_rate(d, n) / d.learning_rate for n in (0, 99, 500, 800, 900, 999)]
    assert rates == pytest.approx([0.01, 1.0, 1.0, 1.0, 0.5, 0.0], abs=1e-4)
