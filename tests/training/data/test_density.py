from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from training.data.batches import Batches
from training.data.density import clip_densities, densities
from training.recipe import load_recipe

DEMO = Path(__file__).resolve().parents[3] / "recipes" / "demo.yaml"


class Images:
    """Clips with one embedding each."""

    def __init__(self, images):
        self.images = images
        self.identity = str(len(images))

    def __len__(self):
        return len(self.images)

    def embeds(self, i):
        return self.images[i][None]


def one_big_and_one_small_cluster(big=600, small=30, dim=64, spreads=(0.05, 0.05)):
    g = torch.Generator().manual_seed(0)
    centres = F.normalize(torch.randn(2, dim, generator=g), dim=1)
    sizes = torch.tensor([big, small])
    places, spread = (x.repeat_interleave(sizes, 0) for x in (centres, torch.tensor(spreads)[:, None]))
    return F.normalize(places + spread * torch.randn(big + small, dim, generator=g), dim=1)


def share_of_the_small_cluster(clips, run, balance, steps=20):
    made = load_recipe(
        DEMO,
        [
            f"run={run}",
            f"denoiser.density_balance={balance}",
            "denoiser.batch_size=200",
        ],
    )
    batches = Batches(clips, made, scalars=[])
    drawn = [i for n in range(steps) for i in batches.clip_numbers(n)]
    assert batches.clip_numbers(3) == Batches(clips, made, scalars=[]).clip_numbers(3)
    return sum(i >= 600 for i in drawn) / len(drawn)


@pytest.mark.parametrize("spreads", [(0.05, 0.05), (0.1, 0.02), (0.02, 0.1)])
def test_balance_draws_a_small_cluster_more_often(tmp_path, spreads):
    clips = Images(one_big_and_one_small_cluster(spreads=spreads))
    shares = [share_of_the_small_cluster(clips, tmp_path, balance) for balance in (0.0, 0.5, 1.0)]
    assert abs(shares[0] - 30 / 630) < 0.01
    assert 2 < shares[1] / shares[0] < shares[2] / shares[0]
    assert 0.25 < shares[2] < 0.6


def test_a_density_is_the_size_of_a_small_cluster():
    made = densities(one_big_and_one_small_cluster())
    assert 25 < float(made[600:].mean()) < 35
    assert 200 < float(made[:600].mean()) < 600
    assert torch.equal(made, densities(one_big_and_one_small_cluster()))


def test_few_or_equal_clips_have_finite_densities():
    assert densities(torch.randn(3, 8)).tolist() == [1, 1, 1]
    assert densities(torch.ones(40, 8)).isfinite().all()
    assert densities(torch.zeros(40, 8)).isfinite().all()


def test_densities_are_computed_once_and_again_for_other_clips(tmp_path, monkeypatch):
    clips = Images(one_big_and_one_small_cluster(60, 20))
    first = clip_densities(clips, tmp_path)
    monkeypatch.setattr(clips, "embeds", None)
    assert torch.equal(clip_densities(clips, tmp_path), first)
    assert len(clip_densities(Images(one_big_and_one_small_cluster(20, 20)), tmp_path)) == 40
