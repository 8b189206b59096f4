"""Phrases of a generic list as texts of frames."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from models.conditioning.phrase_bank import PhraseBank
from models.conditioning.prompts import TEMPLATES, templated
from training.data.clips import load_clips
from training.prior import FILE, load_bank

D, NAMES = 16, 1000


class Words:
    """An encoder without weights.

    A name is a fixed random direction, a template a small offset, and all texts share a cone far from the
    images'.
    """

    def __init__(self):
        g = torch.Generator().manual_seed(0)
        self.directions = F.normalize(torch.randn(NAMES, D, generator=g), dim=-1)
        self.calls = 0

    def encode_text(self, texts):
        from torchvision.models._meta import _IMAGENET_CATEGORIES as names

        self.calls += 1
        rows = []
        for text in texts:
            template = max((t for t in TEMPLATES if text.startswith(t.removesuffix("{}"))), key=len)
            name = text.removeprefix(template.removesuffix("{}"))
            offset = torch.full((D,), 0.02 * TEMPLATES.index(template))
            rows.append(self.directions[names.index(name)] + offset + 3 * torch.eye(D)[0])
        return F.normalize(torch.stack(rows), dim=-1)


@pytest.fixture(scope="module")
def words():
    return Words()


@pytest.fixture(scope="module")
def bank(words):
    return PhraseBank.build(words, -2 * torch.eye(D)[1])


def image(words, name):
    """What lies in the images' cone where `name` lies in the texts'."""
    return words.directions[[name]] - 2 * torch.eye(D)[1]


def test_an_image_finds_its_name_across_the_cones(words, bank):
    for name in (0, 7, 999):
        assert bank.similar(image(words, name), 1)[1].tolist() == [[name]]


def test_a_draw_is_near_and_depends_on_its_generator(words, bank):
    def draws(seed):
        g = torch.Generator().manual_seed(seed)
        return torch.stack([bank.draw(image(words, 7)[0], 5, g) for _ in range(50)])

    assert torch.equal(draws(0), draws(0))
    assert not torch.equal(draws(0), draws(1))
    distances = torch.cdist(draws(0), bank.phrases[:, 7])
    assert (distances.amin(1) < 1e-3).float().mean() > 0.5
    assert set(distances.argmin(1).tolist()) == set(range(len(TEMPLATES)))


def test_a_wrong_k_is_rejected(words, bank):
    for k in (0, NAMES + 1):
        with pytest.raises(ValueError, match=f"k must be 1 to 1000, got {k}"):
            bank.similar(image(words, 0), k)


def test_the_bank_of_a_prepared_folder_is_built_once(words, prepared, monkeypatch, tmp_path):
    clips = load_clips(prepared)
    monkeypatch.setattr("training.prior.load_encoder", lambda _: words)
    monkeypatch.setattr(words, "calls", 0)
    small = type(clips)(**(vars(clips) | {"image_mean": torch.zeros(D), "folder": tmp_path}))
    first, second = load_bank(small), load_bank(small)
    assert (tmp_path / FILE).is_file()
    assert words.calls == 10 * len(TEMPLATES)
    assert torch.equal(first.phrases, second.phrases)


def test_templates_replace_an_existing_one():
    wanted = [t.format("a dog") for t in TEMPLATES]
    assert templated("a dog") == templated("a photo of a dog") == templated("The sound of a dog") == wanted
    assert templated("a photo of ")[1] == "a photo of a photo of "
