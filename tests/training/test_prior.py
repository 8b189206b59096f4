"""The prior: from phrases to images, on pairs made without captions."""

import torch
import torch.nn.functional as F

from models.conditioning.phrase_bank import PhraseBank
from models.networks.condition_encoder import ConditionEncoder
from training.prior import fit_prior

D, NAMES = 12, 40


def toy():
    """Images are the texts of their names, rotated, in another cone, with noise."""
    g = torch.Generator().manual_seed(0)
    names = F.normalize(torch.randn(NAMES, D, generator=g), dim=-1)
    skew = torch.randn(D, D, generator=g)
    turn = torch.linalg.matrix_exp(0.1 * (skew - skew.T))
    phrases = F.normalize(torch.stack([names, names + 0.05 * torch.randn(NAMES, D, generator=g)]), dim=-1)
    label = torch.randint(NAMES, (300,), generator=g)
    images = names[label] @ turn + 0.05 * torch.randn(300, D, generator=g)
    encoder = ConditionEncoder(embed_dim=D)
    encoder.means.copy_(torch.stack([images.mean(0), phrases.mean((0, 1))]))
    return encoder, PhraseBank(phrases, images.mean(0)), images, names, names @ turn


def test_texts_come_nearer_to_their_images():
    encoder, bank, images, texts, goals = toy()
    fitted = fit_prior(encoder, bank, images, dim=32, k=1, steps=150)
    target = encoder.centre(goals, "image")
    before, after = ((e.centre(texts, "text") * target).sum(-1).mean().item() for e in (encoder, fitted))
    assert after > before + 0.05
    assert not any(p.requires_grad for p in fitted.parameters())


def test_a_prior_depends_only_on_its_seed():
    encoder, bank, images, *_ = toy()
    one = fit_prior(encoder, bank, images, dim=8, steps=3)
    with torch.no_grad():
        two = fit_prior(encoder, bank, images, dim=8, steps=3)
    for name, weight in one.state_dict().items():
        assert torch.equal(weight, two.state_dict()[name]), name
    other = fit_prior(encoder, bank, images, dim=8, steps=3, seed=1)
    assert not torch.equal(one.prior[0].weight, other.prior[0].weight)
