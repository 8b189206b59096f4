import math
from pathlib import Path

import pytest
import torch

from models.audio.istft_vocoder import IstftVocoder
from models.audio.mel import MelSpectrogram
from tests.support.tiny_recipe import DEMO, recipe
from training.data.clips import load_clips
from training.loop import build_accelerator
from training.recipe import load_recipe
from training.state import TrainingState, learning_rate, load_state
from training.train import train
from training.vocoder.energy_distance import energy_distance
from training.vocoder.istft import IstftStep, untrained_parts

MEL = MelSpectrogram()
TINY = ("vocoder.architecture=istft", "vocoder.dim=16", "vocoder.depth=1", "vocoder.decay_share=0")


def test_noise_scores_better_than_its_mean_only_with_repulsion():
    g = torch.Generator().manual_seed(0)
    target, made = (0.1 * torch.randn(n, 16000, generator=g) for n in (8, 16))
    still = made[:8].repeat(2, 1)
    proper, alike = (energy_distance(x, target, MEL)[0].item() for x in (made, still))
    assert proper < 0.6 * alike
    assert energy_distance(target.repeat(2, 1), target, MEL, 0.0)[0].item() == pytest.approx(0, abs=1e-4)


def test_the_rate_rises_stays_and_falls(prepared, tmp_path):
    v = recipe(prepared, tmp_path, 1000, *TINY[:3], "vocoder.decay_share=0.2").vocoder
    rates = [learning_rate(v, n) / v.learning_rate for n in (0, 199, 799, 900, 999)]
    assert rates == pytest.approx([1 / 200, 1, 1, 0.5, 1e-3], abs=1e-3)


def test_training_nears_the_sounds_and_discriminators_start_late(prepared, tmp_path, monkeypatch):
    monkeypatch.setattr("training.vocoder.istft.WARMUP_STEPS", 2)
    made = recipe(prepared, tmp_path, 100, *TINY, "vocoder.adversarial_from=8", "vocoder.warmup_steps=2")
    torch.manual_seed(0)
    parts = untrained_parts(made, load_clips(prepared), MEL)
    first = {name: [p.clone() for p in part.parameters()] for name, part in parts.items()}
    trained = [parts["vocoder"], parts["discriminators"]]
    optimizers = [torch.optim.AdamW(part.parameters()) for part in trained]
    state = TrainingState(tmp_path, parts, optimizers)
    step = IstftStep(made, MEL, build_accelerator(), state)
    waves = 0.1 * torch.randn(2, 24 * 160, generator=torch.Generator().manual_seed(0))
    losses = []
    for n in range(12):
        losses.append(step(n, MEL(waves), waves).item())
        same = all(map(torch.equal, first["discriminators"], parts["discriminators"].parameters()))
        assert same == (n < 8)
    assert losses[7] < losses[0]
    assert not all(map(torch.equal, first["average"], parts["average"].parameters()))
    assert all(map(math.isfinite, losses))


def test_a_recipe_trains_it_and_a_resumed_run_has_equal_bytes(prepared, tmp_path):
    """The bundle has the averaged weights, and another run starts from them."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(recipe(prepared, whole, 4, *TINY), stage="vocoder")
    for steps in (2, 4):
        train(recipe(prepared, parts, steps, *TINY), stage="vocoder")
    one, other = (load_state(Path(run) / "vocoder" / "state.pt")["weights"] for run in (whole, parts))
    for name in ("vocoder", "average"):
        assert all(torch.equal(one[name][key], other[name][key]) for key in one[name])
    assert not torch.equal(one["average"]["head.weight"], one["vocoder"]["head.weight"])
    bundle = train(recipe(prepared, whole, 4, *TINY, "denoiser.steps=2"))
    loaded = IstftVocoder.from_pretrained(bundle / "vocoder")
    assert torch.equal(loaded.head.weight, one["average"]["head.weight"].half())
    assert "istft" in (bundle / "README.md").read_text().lower()
    still = recipe(prepared, tmp_path / "next", 1, *TINY, "vocoder.learning_rate=0.000000001")
    train(still, stage="vocoder", init=bundle)
    begun = load_state(tmp_path / "next" / "vocoder" / "state.pt")["weights"]["average"]
    assert torch.allclose(begun["head.weight"], loaded.head.weight, atol=1e-6)


def test_it_has_no_finetune_stage():
    with pytest.raises(ValueError, match="hifigan"):
        load_recipe(DEMO, ["vocoder.finetune_steps=2"])
