from pathlib import Path

import torch
import torch.nn.functional as F

from training.data import density
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


def one_big_and_one_small_cluster(big=600, small=30, dim=64):
    g = torch.Generator().manual_seed(0)
    centres = F.normalize(torch.randn(2, dim, generator=g), dim=1)
    places = centres.repeat_interleave(torch.tensor([big, small]), 0)
    return F.normalize(places + 0.05 * torch.randn(big + small, dim, generator=g), dim=1)


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


def test_balance_draws_a_small_cluster_like_a_big_one(tmp_path):
    clips = Images(one_big_and_one_small_cluster())
    shares = [share_of_the_small_cluster(clips, tmp_path, balance) for balance in (0.0, 0.5, 1.0)]
    assert abs(shares[0] - 30 / 630) < 0.01
    assert abs(shares[1] - 0.18) < 0.04
    assert abs(shares[2] - 0.5) < 0.05


def test_a_random_part_of_a_large_set_gives_the_same_densities(monkeypatch):
    images = one_big_and_one_small_cluster()
    whole = densities(images)
    monkeypatch.setattr(density, "MAX_REFERENCES", 300)
    part = densities(images)
    for rows in (slice(0, 600), slice(600, 630)):
        assert 0.5 < float(part[rows].mean() / whole[rows].mean()) < 2


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
